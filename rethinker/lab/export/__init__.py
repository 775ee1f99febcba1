"""A config for other trainers: its data, its grader as their reward function, its numbers in their formats."""
