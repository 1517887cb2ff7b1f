"""Several samples of one prompt: who is stopped, when enough is known, and what the answer is then."""
