"""Evaluations on benchmarks beside the paper's rows: tables, paired differences, a figure (``rethinker compare``)."""
