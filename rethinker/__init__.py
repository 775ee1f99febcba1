"""Rethinker: GRPO with Selective Sample Replay and Forced Rethinking for vision-language models (arXiv 2504.08837)."""
