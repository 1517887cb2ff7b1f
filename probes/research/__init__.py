"""Trained values that only research features use: steering vectors and early-exit heads."""
