"""The controller inside agent frameworks."""
