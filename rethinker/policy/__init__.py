"""The policy: a vision-language model, its processor, its prompts and its log-probabilities."""
