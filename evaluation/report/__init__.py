"""Reports of benchmark results: one self-contained HTML page, CSV tables and charts."""
