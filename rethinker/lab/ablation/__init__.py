"""Grids of runs: side by side, resumable, and their table."""
