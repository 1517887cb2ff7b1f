"""Running models behind one contract (`base.py`)."""
