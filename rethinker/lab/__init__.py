"""What notebooks call: small runs, evaluation, looking closely, and how it is shown."""
