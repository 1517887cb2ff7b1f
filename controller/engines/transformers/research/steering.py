"""Adding to hidden states as the forward passes by: on the rows that are to be steered, and on no others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .....errors import OptionError
from ....types import SteeringVector
from ..hidden_states import find_decoder_layers

if TYPE_CHECKING:
    from .....probes.research.steering import Direction

Adder = Callable[[Tensor], Tensor | None]
"""What is added to states [rows, positions, width], of a shape that fits them; None for nothing."""


class SteeringHooks:
    """Which rows of a batch are steered at this step; rows stand in the order of the batch."""

    def __init__(self, rows: Sequence[SteeringVector | None]) -> None:
        self._rows = list(rows)
        self._values: dict[int, Tensor] = {}  # by layer, [rows, 1, width]

    @property
    def layers(self) -> set[int]:
        """Layers at which something may be added."""
        return {row.layer for row in self._rows if row is not None}

    def keep(self, slots: Sequence[int]) -> None:
        """Forget all rows but these: the others have left the batch."""
        self._rows = [self._rows[slot] for slot in slots]
        self._values.clear()

    def added(self, layer: int, states: Tensor) -> Tensor | None:
        """What the rows that are steered now get at a layer, [rows, 1, width], 0 for the others; None if none is."""
        mine = [row if row is not None and row.layer == layer else None for row in self._rows]
        active = [row is not None and row.active() for row in mine]
        if not any(active):
            return None
        if layer not in self._values:
            nothing = torch.zeros(states.shape[-1])
            values = [nothing if row is None else torch.from_numpy(row.values) for row in mine]
            self._values[layer] = torch.stack(values)[:, None].to(states)
        return self._values[layer] * torch.tensor(active, device=states.device)[:, None, None]


@contextmanager
def install_steering(model: Any, rows: Sequence[SteeringVector | None]) -> Iterator[SteeringHooks | None]:
    """**Adds hooks to the model**, which steer these rows while they say so, until the end of the `with`.

    Yields None, and adds nothing, where no row is to be steered. Raises as `steered` does.
    """
    if not any(rows):
        yield None
        return
    batch = SteeringHooks(rows)
    with _adding(model, {layer: _at(batch, layer) for layer in batch.layers}):
        yield batch


@contextmanager
def steered(
    model: Any, direction: Direction, strength: float | None = None, layer: int | None = None
) -> Iterator[None]:
    """**Adds a hook to the model**, which steers all rows at all positions, until the end of the `with`.

    For studies: a session steers only what is thought, row by row. strength, layer: None takes what was found to be of
    use. Raises OptionError for a layer that cannot be steered, or where neither is given and none was found.
    """
    at, size = direction.chosen(layer, strength)
    values = torch.from_numpy(direction.push(at, size))
    with _adding(model, {at: lambda states: values.to(states)}):
        yield


def _at(batch: SteeringHooks, layer: int) -> Adder:
    return lambda states: batch.added(layer, states)


@contextmanager
def _adding(model: Any, adders: Mapping[int, Adder]) -> Iterator[None]:
    places = {layer: _block(model, layer) for layer in adders}  # all or none: no hook may stay behind
    handles = [place.register_forward_hook(_hook(adders[layer])) for layer, place in places.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hook(adder: Adder) -> Any:
    def add(module: nn.Module, inputs: Any, output: Any) -> Any:
        states = output if isinstance(output, Tensor) else output[0]
        more = adder(states)
        if more is None:
            return None
        return states + more if isinstance(output, Tensor) else (states + more, *output[1:])

    return add


def _block(model: Any, layer: int) -> nn.Module:
    """The block that puts out the hidden states of a layer."""
    count = model.config.get_text_config(decoder=True).num_hidden_layers
    if not 0 < layer < count:
        raise OptionError(f"hidden layer {layer} cannot be steered; accepted: 1 to {count - 1}, between the blocks")
    return find_decoder_layers(model, layer).module
