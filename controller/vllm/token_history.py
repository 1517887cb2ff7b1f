"""Prompts and outputs of slots under the V2 runner, which keeps them on the device; copies that nothing waits for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Fetched:
    """Tokens on the host: the latest of slots, and all of those slots whose request has begun."""

    slots: NDArray[np.int64]
    lengths: NDArray[np.int64]  # of the outputs
    tokens: NDArray[np.int64]  # the latest, [slots, most that a step makes]
    begun: dict[int, tuple[list[int], list[int]]]  # by slot: prompt and output


class TokenHistory:
    """Fetches tokens while a forward pass runs: `fetch` before it, `collect` after it was started.

    Nothing waits for the device but `collect`, for the end of the previous step. `states` is vLLM's
    `LogitsProcRequestState`; a step makes one token of each slot, and one for each of `drafts` that is accepted.
    """

    def __init__(self, states: Any, drafts: int = 0) -> None:
        self.states = states
        self._back = np.arange(drafts, -1, -1)
        self._device = torch.device(states.device)
        self._stream = torch.cuda.Stream(self._device) if self._device.type == "cuda" else None
        self._copies: tuple[NDArray[np.int64], Tensor | None, dict[int, tuple[Tensor, int]]] | None = None
        self._there: Any = None

    @property
    def on_gpu(self) -> bool:
        """Whether tokens are on a GPU."""
        return self._stream is not None

    def fetch(self, slots: NDArray[np.int64], begun: Sequence[int]) -> None:
        """Start to fetch the latest tokens of these slots, and all tokens of those that have begun."""
        if not len(slots) and not begun:
            return
        if self._stream is None:
            self._copies = self._copy(slots, begun)
            return
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            self._copies = self._copy(slots, begun)
            self._there = self._stream.record_event()

    def _copy(
        self, slots: NDArray[np.int64], begun: Sequence[int]
    ) -> tuple[NDArray[np.int64], Tensor | None, dict[int, tuple[Tensor, int]]]:
        whole = {}
        for slot in begun:
            known = self.states.all_token_ids.gpu[slot, : int(self.states.prefill_len.np[slot])]
            whole[slot] = to_host(known.clone()), int(self.states.prompt_len.np[slot])
        return slots, to_host(self._latest(slots)) if len(slots) else None, whole

    def _latest(self, slots: NDArray[np.int64]) -> Tensor:
        """Lengths, and the latest tokens, [slots, 1 + most]; what comes before the first token does not matter."""
        known = to_device(np.concatenate((slots, self._back)), self._device)
        where, back = known[: len(slots), None], known[len(slots) :]
        lengths = self.states.total_len.gpu[where].long()
        tokens = self.states.all_token_ids.gpu[where, (lengths - 1 - back).clamp(min=0)]
        return torch.cat((lengths, tokens.long()), dim=1)

    def collect(self) -> Fetched | None:
        """What was fetched last; None if nothing is new."""
        if self._copies is None:
            return None
        if self._there is not None:
            self._there.synchronize()
        (slots, latest, whole), self._copies = self._copies, None
        found = np.zeros((0, 1 + len(self._back)), dtype=np.int64) if latest is None else latest.numpy()
        begun = {}
        for slot, (copied, prompt) in whole.items():
            ids = list(map(int, copied.numpy()))
            begun[slot] = ids[:prompt], ids[prompt:]
        return Fetched(slots, found[:, 0] - self.states.prompt_len.np[slots], found[:, 1:], begun)


def to_device(values: Any, device: torch.device) -> Tensor:
    """Whole numbers, a list or an array, on a device: int64, of the same shape."""
    pinned = torch.tensor(values, dtype=torch.int64, pin_memory=device.type == "cuda")
    return pinned.to(device, non_blocking=True)


def to_host(tensor: Tensor) -> Tensor:
    """A copy in pinned memory; it may be read once an event that was recorded after it on its stream has passed.

    A tensor that is on the host already is returned itself.
    """
    if tensor.device.type == "cpu":
        return tensor
    target = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return target.copy_(tensor, non_blocking=True)
