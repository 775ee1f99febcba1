"""Queries: the visual-math world, and reading and writing data sets in the schema of ViRL39K."""
