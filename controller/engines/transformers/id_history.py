"""The token ids that logits processors and stopping criteria see, kept only where something reads them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..sequence import CacheEdit


class IdHistory:
    """Prompt and output ids of a batch, right-aligned.

    Args:
        prompt: ids [sequences, length].
        mask: 0 where the prompt is padding, or None.
        pad: id that fills rows after sequences grew unequally.
        kept: whether anything reads the ids; `tensor` is None otherwise.
    """

    def __init__(self, prompt: Tensor, mask: Tensor | None, pad: int, kept: bool) -> None:
        self.prompt, self.mask, self.pad = prompt, mask, pad
        self.tensor: Tensor | None = prompt if kept else None
        self._padding: list[int] | None = None

    def append(self, tokens: Tensor) -> None:
        """Add one token per sequence."""
        if self.tensor is not None:
            self.tensor = torch.cat([self.tensor, tokens[:, None]], dim=-1)

    def replace_last(self, tokens: Tensor) -> None:
        """Replace the last column."""
        if self.tensor is not None:
            self.tensor[:, -1] = tokens

    def apply(self, edits: Mapping[int, CacheEdit]) -> None:
        """Apply edits by row, and pad on the left as little as possible."""
        if self.tensor is None:
            return
        ids, width = self.tensor, self.tensor.shape[1]
        if self._padding is None:
            length = self.prompt.shape[1]
            masked = self.mask is not None
            self._padding = (self.mask[:, -length:] == 0).sum(1).tolist() if masked else [0] * len(ids)  # type: ignore[index]
        kept, added = [], []
        for row, padding in enumerate(self._padding):
            edit = edits.get(row)
            kept.append(ids[row, padding : width - edit.drop] if edit else ids[row, padding:])
            added.append(ids.new_tensor(edit.add if edit else ()))
        lengths = [len(old) + len(new) for old, new in zip(kept, added, strict=True)]
        width = max(lengths)
        self._padding = [width - length for length in lengths]
        self.tensor = ids.new_full((len(lengths), width), self.pad)
        for row, padding in enumerate(self._padding):
            self.tensor[row, padding:] = torch.cat([kept[row], added[row]])
