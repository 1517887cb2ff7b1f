"""Tasks for agents with real tools, and the comparison of agents on them."""
