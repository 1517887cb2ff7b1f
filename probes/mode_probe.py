"""The mode that a question needs, told from the hidden state of its prompt: the router of A2FM (arXiv 2510.12838)."""

from __future__ import annotations

from typing import ClassVar

from .probe import Probe


class ModeProbe(Probe):
    """Chances that `instant`, `reasoning` or `agentic` is the cheapest mode that will do."""

    kind: ClassVar[str] = "mode"
