"""MEGA-Bench's deterministic rules, re-stated: parsing, metrics of fields, mean or minimum (arXiv:2410.10563).

Pure functions on strings; the items' own columns say which parser, which metric a field and which aggregation. Quirks
of the published rules are kept, because published numbers contain them, and named where they are.
"""

from rethinker.benchmarks.rules.mega.scoring import METRICS, UNSUPPORTED, Scored, fault, score

__all__ = ["METRICS", "UNSUPPORTED", "Scored", "fault", "score"]
