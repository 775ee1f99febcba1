"""Grids of runs: in parallel and resumable, and their table."""
