"""Numbers of parameters of a model, part by part, without its weights: for plans, and for the disk that a run needs."""
