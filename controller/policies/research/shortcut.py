"""Depth shortcut: easy thinking tokens leave the model before its upper layers, which an adapter stands in for.

After System-1.5 Reasoning (arXiv 2505.18962), whose gate weighs layer and adapter in training and leaves above a
threshold in use. Prompt, answer, trial answers and what is forced are read in full.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import ClassVar

from ....probes.artifact import ArtifactError
from ....probes.research.shortcut import Shortcut
from ...types import EarlyExit, Engine
from ..base import Policy, PolicyView, Wait, Watching


@dataclass(frozen=True, slots=True)
class DepthShortcut:
    """Let thinking tokens of the model at hand leave early, as `tersely train shortcut` has learnt it for that model.

    probes: folder in which the training put it. threshold: in place of the one that was found; higher lets fewer leave.
    shortcut: in place of that of a folder. What is thought is then another model's, if nearly the same one: hidden
    states above the layer, and certificates of other policies, do not hold for tokens that left.
    """

    name: ClassVar[str] = "shortcut"
    needs: ClassVar[frozenset[str]] = frozenset({"shortcut"})
    probes: str | None = None
    threshold: float | None = None
    shortcut: Shortcut | None = field(default=None, repr=False, hash=False)

    @property
    def learned_from(self) -> frozenset[str]:
        """See `Policy`."""
        return frozenset() if self.shortcut is None else self.shortcut.learned_from

    def bind(self, engine: Engine) -> Policy:
        """See `Policy`; raises ProbeError if there is no shortcut for this model, OptionError if none is of use.

        Raises ArtifactError for the shortcut of another model.
        """
        from ...probe_registry import load_early_exit

        found = self.shortcut
        if found is None:
            found = load_early_exit(engine, self.probes)
        elif found.base["fingerprint"] != engine.fingerprint():
            raise ArtifactError(
                f"the shortcut was learnt on {found.base['name']}, and {engine.name!r} is another model"
            )
        return replace(self, threshold=found.chosen(self.threshold), shortcut=found)

    def leaving(self, boundary: Callable[[], str | None]) -> EarlyExit:
        """How tokens of a row leave; `boundary()` is what its latest token ended, None where it does not think."""
        if self.shortcut is None or self.threshold is None:
            raise TypeError("a DepthShortcut must be bound to an engine first; a session does that")
        return EarlyExit(self.shortcut, self.threshold, lambda: boundary() is not None)

    def watch(self, view: PolicyView) -> Watching:
        """Never acts: see `leaving`."""
        yield Wait(at=1 << 60)
