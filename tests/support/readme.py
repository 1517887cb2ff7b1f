"""The code blocks of README.md."""

from __future__ import annotations

import re
from pathlib import Path

README = Path(__file__).parents[2] / "README.md"


def readme_blocks(language: str) -> list[str]:
    """The blocks of a language, in order."""
    return [
        text
        for kind, text in re.findall(r"^```(\w+)\n(.*?)^```", README.read_text("utf-8"), re.M | re.S)
        if kind == language
    ]
