"""Finding and validating a steering vector that shortens a model's thinking (Efficiency Steering, arXiv 2506.15647)."""
