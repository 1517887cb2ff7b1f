"""The embedded reasoning models, Qwen3 checkpoints shipped as package data, and where they lie on disk.

All is measured on `tersely-tiny-small` and `tersely-tiny-large`; `tersely-tiny-agent` calls tools.
"""

from __future__ import annotations

from pathlib import Path

from ..errors import ModelError, did_you_mean

NAMES = ("tersely-tiny-small", "tersely-tiny-large", "tersely-tiny-agent")


class UnknownModelError(ModelError, KeyError):
    """No embedded model has the name asked for."""

    def __str__(self) -> str:
        """Give the message as written; KeyError would show its repr."""
        return str(self.args[0])


def get_model_path(name: str) -> Path:
    """Return the folder of an embedded model; raises UnknownModelError."""
    if name in NAMES:
        return Path(__file__).parent / name
    raise UnknownModelError(f"no embedded model is called {name!r}; {did_you_mean(name, NAMES)}")
