"""Adapters for agent frameworks, each of them optional."""
