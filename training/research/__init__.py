"""Training methods of papers that ordinary users do not need; found by entry points only."""
