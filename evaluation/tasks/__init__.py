"""Questions with gold answers, and checking answers against them."""
