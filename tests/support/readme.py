"""The code blocks of README.md and the docs."""

from __future__ import annotations

import re
from pathlib import Path

README = Path(__file__).parents[2] / "README.md"


def code_blocks(path: Path, *languages: str) -> list[str]:
    """The blocks of these languages in a Markdown file, in order."""
    blocks = re.findall(r"^```(\w+)\n(.*?)^```", path.read_text("utf-8"), re.M | re.S)
    return [text for language, text in blocks if language in languages]
