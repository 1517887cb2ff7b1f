"""Layers of a key-value cache in which our decode loop appends, selects and removes."""

from __future__ import annotations

from typing import Any

import torch
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


class SharedPrefixLayer(PreallocatedCacheLayer):
    """Keeps a prefix that all rows share once, for `kernels.shared_prefix`; `keys` and `values` are what follows it."""

    def __init__(self, layer: DynamicLayer, rows: int) -> None:
        """`layer` has read the prefix, keys and values [1, heads, prefix, width]."""
        super().__init__(layer)
        self.prefix = (layer.keys, layer.values)
        self.keys, self.values = (part[:, :, :0].expand(rows, -1, -1, -1) for part in self.prefix)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append states [rows, heads, new, width] and return all after the prefix, which the keys hold as attribute."""
        keys, values = super().update(key_states, value_states, *args, **kwargs)
        keys.shared_prefix = self.prefix  # type: ignore[attr-defined]
        return keys, values

    def get_seq_length(self) -> int:
        """The columns of prefix and suffix."""
        return int(self.prefix[0].shape[-2] + self.keys.shape[-2])

    def expand(self) -> PreallocatedCacheLayer:
        """A layer with a copy of the prefix in each row."""
        plain = DynamicLayer()
        plain.lazy_initialization(self.keys, self.values)
        rows = len(self.keys)
        parts = zip(self.prefix, (self.keys, self.values), strict=True)
        plain.keys, plain.values = (torch.cat([one.expand(rows, -1, -1, -1), own], dim=-2) for one, own in parts)
        return PreallocatedCacheLayer(plain)
