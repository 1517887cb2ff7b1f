"""The shelf: operations that are exact and tested, and that nothing here uses.

Each is a paper's idea in the form of the house, kept for what it teaches: `benchmarks/shelf.py` says how far it comes
beside what is used instead. Nothing outside this folder imports it.
"""
