"""Hidden states of chosen layers, kept as the forward of a step passes by: no second forward, no other cost."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import CapabilityError, OptionError
from .base import State


class HiddenStates:
    """Keeps the states after the last token fed to each row, [rows, width] a layer, until the next forward.

    Layers are counted as by transformers: 0 is the embedding (without learnt positions), k what block k puts out, the
    last what the final norm makes of that; negative ones count from the end. Raises OptionError for a layer that the
    model does not have.
    """

    def __init__(self, model: Any, layers: Collection[int]) -> None:
        self._last: dict[int, Tensor] = {}
        places = {layer: place_of(model, layer) for layer in layers}  # all or none: no hook may stay behind
        self._handles = [place.register_forward_hook(self._keeper(layer)) for layer, place in places.items()]

    def _keeper(self, layer: int) -> Any:
        def keep(module: nn.Module, inputs: Any, output: Any) -> None:
            value = output if isinstance(output, Tensor) else output[0]
            self._last[layer] = value[:, -1]

        return keep

    def read(self, layer: int, slot: int) -> State:
        """The state of a row by its place in the batch, [width] on the host; raises OptionError for another layer."""
        return _read(self._last, slot, layer)

    def reader(self, slot: int) -> Callable[[int], State]:
        """Reads the states of a row as they are now, by layer, however many forwards have passed by since."""
        return partial(_read, self._last.copy(), slot)

    def close(self) -> None:
        """Leave the model as it was."""
        for handle in self._handles:
            handle.remove()


def _read(last: Mapping[int, Tensor], slot: int, layer: int) -> State:
    if layer not in last:
        raise OptionError(f"hidden layer {layer} was not asked for; the request's layers: {sorted(last)}")
    state: State = last[layer][slot].detach().to("cpu", torch.float32, copy=True).numpy()
    return state


def place_of(model: Any, layer: int) -> nn.Module:
    """The module that puts out the hidden state of a layer; raises OptionError, CapabilityError if none is found."""
    decoder: nn.Module = model.get_decoder() if hasattr(model, "get_decoder") else model.base_model
    count = model.config.get_text_config(decoder=True).num_hidden_layers
    index = layer + count + 1 if layer < 0 else layer
    if not 0 <= index <= count:
        raise OptionError(f"hidden layer {layer} does not exist; accepted: 0 to {count}, or -1 to {-count - 1}")
    if index == count:
        return decoder
    if index == 0:
        embedding: nn.Module = model.get_input_embeddings()
        return embedding
    lists = (part for part in decoder.modules() if isinstance(part, nn.ModuleList) and len(part) == count)
    blocks = next(lists, None)
    if blocks is None:
        raise CapabilityError(f"no list of {count} layers found in {type(model).__name__}; use layer -1")
    return blocks[index - 1]
