"""Auto exit: end the thinking by the best evidence that is available for the model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from ...errors import CapabilityError
from ..probe_registry import ProbeError
from ..types import BindContext
from .base import Policy, PolicyView, Watching, unbound_error
from .convergence import Convergence
from .readiness import Readiness


@dataclass(frozen=True, slots=True)
class AutoExit(Policy):
    """Use `Readiness` where the model has a probe and its engine shows what it reads, else `Convergence`.

    The trace names the one that acts.

    Attributes:
        probes: as for `Readiness`.
        agree: successive equal answers that end the thinking where there is no probe.
    """

    name: ClassVar[str] = "auto_exit"
    probes: str | None = None
    agree: int = 2

    def bind(self, context: BindContext) -> Policy:
        """See `Policy.bind`.

        Raises:
            ProbeError: the folder does not exist.
            ArtifactError: it holds another model's probe.
        """
        if context.engine is None:
            return Convergence(self.agree)
        probes = self.probes or context.probes
        try:
            return Readiness(probes).bind(context)
        except (ProbeError, CapabilityError):
            if probes is not None and not Path(probes).is_dir():
                raise
            return Convergence(self.agree)

    def watch(self, view: PolicyView) -> Watching:
        """Refuse: `bind` returns the policy that acts."""
        raise unbound_error(self)
