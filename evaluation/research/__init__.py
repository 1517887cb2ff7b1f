"""Measurements that only research features need."""
