"""The trace viewer: records of generations as JSONL, and an HTML page that shows them."""
