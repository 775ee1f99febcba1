"""What is copied into an export as it is: each runs in the other trainer and imports the grader only."""
