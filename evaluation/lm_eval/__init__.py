"""The model `tersely` for lm-evaluation-harness, and the command that registers it."""
