"""By what a question is known again in another split or file."""

from __future__ import annotations

import hashlib


def question_hash(text: str) -> str:
    """A hash of a question's text, white space aside."""
    return hashlib.sha256(" ".join(text.split()).encode()).hexdigest()[:16]
