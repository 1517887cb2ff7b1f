"""Larger models that write or review parts of the thinking."""
