"""The embedded reasoning models, two Qwen3 checkpoints shipped as package data, and where they lie on disk.

Nothing here loads a model: a name becomes a folder that transformers, vLLM or anything else can read.
"""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path

NAMES = ("tersely-tiny-small", "tersely-tiny-large")


class UnknownModelError(KeyError):
    """No embedded model has the name asked for."""

    def __str__(self) -> str:
        """Give the message as written; KeyError would show its repr."""
        return str(self.args[0])


def path_of(name: str) -> Path:
    """Return the folder of an embedded model."""
    if name in NAMES:
        return Path(__file__).parent / name
    near = get_close_matches(name, NAMES, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise UnknownModelError(f"no embedded model is called {name!r}{hint} (there are: {', '.join(NAMES)})")
