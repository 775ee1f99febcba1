"""The figures: what each shows, one style for all."""
