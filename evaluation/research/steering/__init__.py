"""Finding a direction that shortens a model's thinking, and proving that it does."""
