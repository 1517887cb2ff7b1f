"""Reports of benchmark results: tables as CSV, pictures, and one self-contained HTML page."""
