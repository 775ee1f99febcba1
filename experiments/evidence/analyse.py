"""Figures, tables and verdicts from the committed tables alone: experiments/evidence/figures, docs/evidence.md.

    make evidence

Deterministic: the same tables give the same files, bit for bit with the same versions of numpy and matplotlib.
"""

from __future__ import annotations

from pathlib import Path

from rethinker.lab.evidence.page import write_all

if __name__ == "__main__":
    for path in write_all(Path(__file__).resolve().parents[2]):
        print(path)
