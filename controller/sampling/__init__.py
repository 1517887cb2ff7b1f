"""Several samples of one prompt: which of them are stopped, and what the answer is."""
