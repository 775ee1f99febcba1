"""Puts experiments/benchmarks on the path, whose model of a peer, workers and stopwatches are used here too."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
