"""What a run needs on GPUs, by formulas: memory of a rank, tokens and seconds of an episode (``rethinker plan``)."""
