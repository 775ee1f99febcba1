"""Weights & Biases: a mirror of a run's files, its later sync, and reports."""
