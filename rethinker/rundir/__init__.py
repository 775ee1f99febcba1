"""A run's folder: its paths and locks, what is written there, and how it is read."""
