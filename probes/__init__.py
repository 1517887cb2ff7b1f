"""Trained probes as values: features, networks, stop rules, certificates and their files."""
