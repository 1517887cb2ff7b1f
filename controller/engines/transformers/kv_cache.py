"""A cache layer with room to grow: a step writes its column instead of copying the whole cache."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.cache_utils import DynamicLayer

_ROOM = 64


class PreallocatedCacheLayer(DynamicLayer):  # type: ignore[misc]
    """Like `DynamicLayer`, which concatenates; here `keys` and `values` are the filled part of larger buffers.

    They may be replaced, selected or cropped: a part that no longer begins its buffer is copied into a new one.
    """

    keys: Tensor
    values: Tensor

    def __init__(self, layer: DynamicLayer) -> None:
        super().__init__()
        self.__dict__.update(vars(layer))  # which attributes a layer has differs between releases of transformers
        self._buffers: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append states [rows, heads, new, width] and return all, [rows, heads, length, width]."""
        if not self.is_initialized or self.keys.dim() < 4:
            self.lazy_initialization(key_states, value_states)
            self.keys, self.values = key_states[..., :0, :], value_states[..., :0, :]
        length = self.keys.shape[-2]
        end = length + key_states.shape[-2]
        keys, values = self._buffers_for(end)
        keys[..., length:end, :] = key_states
        values[..., length:end, :] = value_states
        self.keys, self.values = keys[..., :end, :], values[..., :end, :]
        return self.keys, self.values

    def _buffers_for(self, end: int) -> tuple[Tensor, Tensor]:
        """Buffers that begin with the current keys and values and have at least `end` columns."""
        held = (self.keys, self.values)
        if self._buffers is not None and all(
            part.data_ptr() == buffer.data_ptr() and part.stride() == buffer.stride() and end <= buffer.shape[-2]
            for part, buffer in zip(held, self._buffers, strict=True)
        ):
            return self._buffers
        grown = []
        for part in held:
            rows, heads, length, width = part.shape
            buffer = part.new_zeros((rows, heads, end + max(_ROOM, end // 4), width))
            buffer[..., :length, :] = part
            grown.append(buffer)
        self._buffers = (grown[0], grown[1])
        return self._buffers


def enable_preallocation(cache: Any) -> None:
    """Give every plain layer of a cache room to grow."""
    cache.layers = [PreallocatedCacheLayer(layer) if type(layer) is DynamicLayer else layer for layer in cache.layers]
