"""Fine-tuning for adaptive thinking with TRL, and the toy models."""
