"""Training methods of papers that ordinary use does not need."""
