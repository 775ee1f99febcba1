"""What the notebooks call and show."""
