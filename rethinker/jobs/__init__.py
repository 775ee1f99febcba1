"""Runs as jobs: started once, locked, found again, stopped, resumed."""
