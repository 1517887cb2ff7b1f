"""Policies of papers that ordinary use does not need."""
