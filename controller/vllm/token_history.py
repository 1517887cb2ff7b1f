"""Outputs under vLLM's V2 model runner, which keeps them on the device.

The tokens of the previous step are copied during the forward pass: the copy starts before the pass is launched and is
waited for after it, so the device never idles for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class TokenHistory:
    """Prompts and outputs of slots on the host; `states` is vLLM's `LogitsProcRequestState`."""

    def __init__(self, states: Any) -> None:
        self.states = states
        self._outputs: dict[int, list[int]] = {}
        self._slots: list[int] = []
        self._copied: Tensor | None = None
        self._there: Any = None
        on_gpu = torch.device(states.device).type == "cuda"
        self._stream = torch.cuda.Stream(states.device) if on_gpu else None

    def begin(self, slot: int) -> tuple[list[int], list[int]]:
        """The prompt of a new slot, and its output so far: a list that grows from now on."""
        prompt = int(self.states.prompt_len.np[slot])
        known = self.states.all_token_ids.gpu[slot, : int(self.states.prefill_len.np[slot])].tolist()
        self._outputs[slot] = known[prompt:]
        return known[:prompt], self._outputs[slot]

    def fetch(self, slots: Sequence[int]) -> None:
        """Start to fetch the latest token of these slots."""
        self._slots = list(slots)
        if self._stream is None:
            self._copied = self._latest()
            return
        self._stream.wait_stream(torch.cuda.current_stream(self.states.device))
        with torch.cuda.stream(self._stream):
            self._copied = self._latest().to("cpu", non_blocking=True)
            self._there = self._stream.record_event()

    def _latest(self) -> Tensor:
        """Length and last token of each slot, [slots, 2]."""
        slots = torch.tensor(self._slots, device=self.states.device)
        lengths = self.states.total_len.gpu[slots].long()
        return torch.stack((lengths, self.states.all_token_ids.gpu[slots, lengths - 1].long()), dim=1)

    def collect(self) -> None:
        """Append what was fetched: at most one token per slot, where one has been sampled."""
        if self._copied is None:
            return
        if self._there is not None:
            self._there.synchronize()
        for slot, (length, token) in zip(self._slots, self._copied.tolist(), strict=True):
            output = self._outputs[slot]
            if length > int(self.states.prompt_len.np[slot]) + len(output):
                output.append(token)
        self._copied = None
