"""From the files of runs to tables."""
