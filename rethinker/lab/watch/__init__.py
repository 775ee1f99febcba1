"""The live terminal view of a run."""
