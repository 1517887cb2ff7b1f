"""Steering: thinking is pushed along the direction in which right thinking gets shorter.

Efficiency Steering (arXiv 2506.15647): h <- h + strength * s * v at one layer, v being the direction and s the mean
norm of the hidden states there. Prompt, answer and trial answers are left alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import ClassVar

from ....probes.artifact import ArtifactError
from ....probes.research.steering import Direction
from ...types import Engine, SteeringVector
from ..base import Policy, PolicyView, Wait, Watching


@dataclass(frozen=True, slots=True)
class Steer:
    """Steer the thinking of the model at hand, everywhere or at the ends of thoughts, as its direction was found.

    probes: folder of `tersely steer`; None takes what is released with tersely. layer, strength: in place of those that
    the search found to be of use; below 0 it lengthens. direction: in place of that of a folder. Hidden states that
    other policies read are then those of a steered model: a certificate of the readiness exit does not hold for it.
    """

    name: ClassVar[str] = "steer"
    needs: ClassVar[frozenset[str]] = frozenset({"steer"})
    probes: str | None = None
    layer: int | None = None
    strength: float | None = None
    direction: Direction | None = field(default=None, repr=False, hash=False)

    @property
    def learned_from(self) -> frozenset[str]:
        """See `Policy`."""
        return frozenset() if self.direction is None else self.direction.learned_from

    def bind(self, engine: Engine) -> Policy:
        """See `Policy`; raises ProbeError if there is no direction for this model, OptionError if none is of use.

        Raises ArtifactError for the direction of another model.
        """
        from ...probe_registry import load_steering_direction

        found = self.direction
        if found is None:
            found = load_steering_direction(engine, self.probes)
        elif found.base["fingerprint"] != engine.fingerprint():
            raise ArtifactError(
                f"the direction was found on {found.base['name']}, and {engine.name!r} is another model"
            )
        layer, strength = found.chosen(self.layer, self.strength)
        found.push(layer, strength)  # complains here, not in the middle of a batch
        return replace(self, layer=layer, strength=strength, direction=found)

    def steering(self, boundary: Callable[[], str | None]) -> SteeringVector:
        """What is added to a row; `boundary()` is what its latest token ended, None where that is no thinking token."""
        found, layer, strength = self._bound()
        everywhere = found.place == "tokens"

        def active() -> bool:
            ended = boundary()
            return ended is not None and (everywhere or ended == "thought")

        return SteeringVector(layer, found.push(layer, strength), active)

    @property
    def steers(self) -> str:
        """For the trace: what is steered, and how."""
        found, layer, strength = self._bound()
        where = "all thinking tokens" if found.place == "tokens" else "the ends of thoughts"
        return f"{where} at layer {layer} with strength {strength:+g}"

    def watch(self, view: PolicyView) -> Watching:
        """Never acts: see `steering`."""
        yield Wait(at=1 << 60)

    def _bound(self) -> tuple[Direction, int, float]:
        if self.direction is None or self.layer is None or self.strength is None:
            raise TypeError("a Steer must be bound to an engine first; a session does that")
        return self.direction, self.layer, self.strength
