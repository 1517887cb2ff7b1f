"""Hidden states of chosen layers, kept as the forward of a step passes by: no second forward, no other cost."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ....errors import CapabilityError, OptionError
from ...types import State


class HiddenStates:
    """Keeps the states after the last token fed to each row, [rows, width] a layer, until the next forward.

    Layers are counted as by transformers: 0 is the embedding, k what block k puts out, the last what the final norm
    makes of that; negative ones count from the end. Raises OptionError for a layer that the model does not have.
    """

    def __init__(self, model: Any, layers: Collection[int]) -> None:
        self._last: dict[int, Tensor] = {}
        places = {layer: find_decoder_layers(model, layer) for layer in layers}  # all or none: no hook may stay behind
        self._handles = [self._hook(place, layer) for layer, place in places.items()]

    def _hook(self, place: HookPoint, layer: int) -> Any:
        def after(module: nn.Module, inputs: Any, output: Any) -> None:
            value = output if isinstance(output, Tensor) else output[0]
            self._last[layer] = value[:, -1]

        def before(module: nn.Module, inputs: Any, named: Mapping[str, Any]) -> None:
            value = inputs[0] if inputs else named["hidden_states"]
            self._last[layer] = value[:, -1]

        if place.before:
            return place.module.register_forward_pre_hook(before, with_kwargs=True)
        return place.module.register_forward_hook(after)

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


class HookPoint(NamedTuple):
    """Where a hidden state passes by: what a module puts out, or what goes into it."""

    module: nn.Module
    before: bool = False


def find_decoder_layers(model: Any, layer: int) -> HookPoint:
    """Where the hidden state of a layer passes by; raises OptionError, CapabilityError if that is not found."""
    decoder: nn.Module = model.get_decoder() if hasattr(model, "get_decoder") else model.base_model
    count = model.config.get_text_config(decoder=True).num_hidden_layers
    index = layer + count + 1 if layer < 0 else layer
    if not 0 <= index <= count:
        raise OptionError(f"hidden layer {layer} does not exist; accepted: 0 to {count}, or -1 to {-count - 1}")
    if index == count:
        return HookPoint(decoder)
    lists = (part for part in decoder.modules() if isinstance(part, nn.ModuleList) and len(part) == count)
    blocks = next(lists, None)
    if index == 0:
        # Learnt positions are added after the embedding's module, so the first block's input is the better place.
        return HookPoint(model.get_input_embeddings()) if blocks is None else HookPoint(blocks[0], before=True)
    if blocks is None:
        raise CapabilityError(f"no list of {count} layers found in {type(model).__name__}; use layer -1")
    return HookPoint(blocks[index - 1])
