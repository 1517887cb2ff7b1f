"""The code blocks of README.md and the docs."""

from __future__ import annotations

import re
from pathlib import Path

README = Path(__file__).parents[2] / "README.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.M | re.S)


def code_blocks(path: Path, *languages: str) -> list[str]:
    """The blocks of these languages in a Markdown file, in order."""
    return [text for language, text in BLOCK.findall(path.read_text("utf-8")) if language in languages]
