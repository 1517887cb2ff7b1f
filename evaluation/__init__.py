"""Tasks with gold answers, the paired benchmark, its statistics, and the model card."""
