"""Evaluation on held-out queries: modes plain, forced and bound, with intervals."""
