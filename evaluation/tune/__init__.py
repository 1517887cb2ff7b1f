"""The search for a cheaper configuration, `tersely tune`."""
