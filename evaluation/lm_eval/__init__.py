"""The model `tersely` for EleutherAI's lm-evaluation-harness, and the command that registers it."""
