"""Adapters for agent and evaluation frameworks, each optional."""
