"""The embedded task family and questions from files."""
