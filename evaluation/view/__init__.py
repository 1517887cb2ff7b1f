"""The trace viewer: records of generations as JSONL, and the one HTML page that shows them."""
