"""Exit: end the thinking by the best evidence that there is for the model at hand."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from ...errors import CapabilityError
from ..types import Engine
from .base import Policy, PolicyView, Watching
from .convergence import Convergence
from .readiness import Readiness


@dataclass(frozen=True, slots=True)
class AutoExit:
    """The readiness exit where this model has a probe and its engine shows what that reads; else equal answers.

    The trace names the one that acts, `readiness` or `convergence`. probes: as for `readiness`. agree: successive equal
    answers that end the thinking where there is no probe.
    """

    name: ClassVar[str] = "exit"
    needs: ClassVar[frozenset[str]] = frozenset()
    probes: str | None = None
    agree: int = 2

    @property
    def fallback(self) -> Policy:
        """What acts where nothing is known of the model."""
        return Convergence(self.agree)

    def bind(self, engine: Engine) -> Policy:
        """See `Policy`; raises ProbeError for a folder that is not there, ArtifactError for another model's probe."""
        from ..probe_registry import ProbeError

        try:
            return Readiness(self.probes).bind(engine)
        except (ProbeError, CapabilityError):
            if self.probes is not None and not Path(self.probes).is_dir():
                raise
            return self.fallback

    def watch(self, view: PolicyView) -> Watching:
        """Refuse: settings alone decide nothing."""
        raise TypeError("an Exit must be bound to an engine first; a session does that")
