"""Tasks for agents with real tools, what an episode of one came to, and arms to compare."""
