"""Aggregation rules of papers that ordinary use does not need."""
