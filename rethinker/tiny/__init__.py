"""The tiny VLM: its architecture, what it is pretrained on, and how the base was measured."""
