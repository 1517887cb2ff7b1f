"""Recipes that train models: the embedded pair today."""
