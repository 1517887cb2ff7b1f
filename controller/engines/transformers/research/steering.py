"""Efficiency Steering (arXiv 2506.15647): push thinking along the direction in which right thinking gets shorter.

h <- h + strength * s * v at one layer, where v is the direction and s the mean norm of the hidden states there. Prompt,
answer and trial answers are left alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from .....errors import OptionError
from .....probes.research.learned import Direction
from ....probe_registry import load_learned
from ....types import BindContext, ForwardModifier, SequenceModifier, State
from ..hooks import ModifierHook, StepHook, find_decoder_layer

AddStates = Callable[[Tensor], Tensor | None]
"""Returns what to add to states [sequences, positions, width], of a shape that fits them; None for nothing."""


@dataclass(frozen=True, slots=True)
class Steer(ForwardModifier):
    """Steer thinking as its direction was found: at every token, or at the ends of thoughts.

    Hidden states that policies read are then those of a steered model, so a certificate of the readiness exit does not
    hold for it.
    """

    name: ClassVar[str] = "steer"
    probes: str | None = None  # folder of `tersely steer`; None uses a pretrained direction
    layer: int | None = None  # used in place of the one that the search chose
    strength: float | None = None  # likewise; below 0 it lengthens thinking
    direction: Direction | None = field(default=None, repr=False, hash=False)  # used in place of that of a folder

    @property
    def provenance(self) -> frozenset[str]:
        return frozenset() if self.direction is None else self.direction.learned_from

    def bind(self, context: BindContext) -> Self:
        """Raises ProbeError without a direction, ArtifactError for a foreign one, OptionError without a strength."""
        remedy = "find one with `tersely steer`, and pass its folder (probes)"
        direction = load_learned(context, self.direction, self.probes, Direction, remedy)
        layer, strength = direction.chosen(self.layer, self.strength)
        direction.push(layer, strength)  # fails here, not in the middle of a batch
        return replace(self, layer=layer, strength=strength, direction=direction)

    def describe(self) -> tuple[str, str]:
        direction, layer, strength = self._require_bound()
        where = "all thinking tokens" if direction.place == "tokens" else "the ends of thoughts"
        return "steer", f"{where} at layer {layer} with strength {strength:+g}"

    def attach(self, boundary: Callable[[], str | None]) -> SequenceModifier:
        direction, layer, strength = self._require_bound()
        everywhere = direction.place == "tokens"

        def active() -> bool:
            ended = boundary()
            return ended is not None and (everywhere or ended == "thought")

        return SteeredSequence(self, active, direction.push(layer, strength))

    @contextmanager
    def install(self, model: Any, sequences: Sequence[SequenceModifier | None]) -> Iterator[StepHook]:
        _, layer, _ = self._require_bound()
        hook = _SteeringHook(sequences)
        with _add_at(model, layer, hook.added):
            yield hook

    def _require_bound(self) -> tuple[Direction, int, float]:
        if self.direction is None or self.layer is None or self.strength is None:
            raise TypeError("Steer must be bound to an engine first; a session does that")
        return self.direction, self.layer, self.strength


@dataclass(eq=False, slots=True)
class SteeredSequence(SequenceModifier):
    """One sequence to whose hidden states `values` [width] are added."""

    values: State


class _SteeringHook(ModifierHook):
    _values: Tensor | None = None  # [sequences, 1, width]

    def select(self, slots: Sequence[int]) -> None:
        super().select(slots)
        self._values = None

    def added(self, states: Tensor) -> Tensor | None:
        """What the sequences that are steered now get, [sequences, 1, width], 0 for the others; None if none is."""
        if not any(active := self.find_active()):
            return None
        if self._values is None:
            nothing = torch.zeros(states.shape[-1])
            values = [nothing if s is None else torch.from_numpy(s.values) for s in self.sequences]
            self._values = torch.stack(values)[:, None].to(states)
        return self._values * torch.tensor(active, device=states.device)[:, None, None]


@contextmanager
def _add_at(model: Any, layer: int, add: AddStates) -> Iterator[None]:
    count = model.config.get_text_config(decoder=True).num_hidden_layers
    if not 0 < layer < count:
        raise OptionError(f"hidden layer {layer} cannot be steered; accepted: 1 to {count - 1}, between the blocks")

    def hook(module: nn.Module, inputs: Any, output: Any) -> Any:
        states = output if isinstance(output, Tensor) else output[0]
        more = add(states)
        if more is None:
            return None
        return states + more if isinstance(output, Tensor) else (states + more, *output[1:])

    with find_decoder_layer(model, layer)[0].register_forward_hook(hook):
        yield
