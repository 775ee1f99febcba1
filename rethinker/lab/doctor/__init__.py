"""What is installed, what is broken, how to repair it."""
