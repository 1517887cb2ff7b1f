"""Several samples of one prompt: which are stopped, when enough is known, and the answer."""
