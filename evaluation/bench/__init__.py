"""The paired benchmark, `tersely bench`."""
