"""Methods of papers that ordinary users do not need."""
