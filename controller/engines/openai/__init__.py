"""A model behind somebody else's endpoint: the same policies by streaming, cancelling and going on."""
