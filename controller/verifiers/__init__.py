"""Verifiers: they answer yes/no questions about a thinking while decoding continues."""
