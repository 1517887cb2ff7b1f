"""One step of a batch: what rows want is written into the logits, and what they need of them is read."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, cached_property, partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from vllm.model_executor.custom_op import PluggableLayer, op_registry_oot
from vllm.model_executor.layers.logits_processor import LogitsProcessor

from ...errors import CapabilityError
from ...kernels.signals import logit_signals
from ..types import State, StepInfo
from .parent_watch import end_with_parent
from .row_table import SIGNALS, STATES, RowTable, make_signals
from .transfers import to_device, to_host

_CERTAIN = 1e9
"""The logit of a forced token; what a grammar has forbidden stays forbidden."""
_kept: list[Tensor] = []
"""What the logits layer was given last: hidden states [rows, width]."""


_NO_PLACES = np.zeros(0, dtype=np.int64)


class Readings:
    """What one step says about the next tokens, copied to the host while the device goes on; see `StepReadings`.

    It may be read once the tokens of the step are there.
    """

    def __init__(self, rows: int, starts: Tensor | None = None) -> None:
        self._rows, self._starts = rows, starts
        self._signals: tuple[NDArray[np.int64], Tensor] | None = None  # places, and [3, places]
        self._states: tuple[NDArray[np.int64], Tensor] | None = None  # places, and [places, width]
        self._swaps: tuple[NDArray[np.int64], Tensor] = (_NO_PLACES, torch.zeros(0, dtype=torch.bool))
        self._swapped: frozenset[int] | None = None

    @cached_property
    def _values(self) -> NDArray[np.float32]:
        values = np.full((self._rows, 3), np.nan, dtype=np.float32)
        if self._signals is not None:
            values[self._signals[0]] = self._signals[1].numpy().T
        return values

    def _find_rows(self, places: Any, draft: int) -> Any:
        """The rows of logits that the tokens after so many drafts of requests came from."""
        return places if self._starts is None else self._starts.numpy()[places] + draft

    def signals(self, places: NDArray[np.int64], draft: int) -> NDArray[np.float32]:
        """See `StepReadings`."""
        values: NDArray[np.float32] = self._values[self._find_rows(places, draft)]
        return values

    def info(self, place: int, draft: int) -> StepInfo:
        """See `StepReadings`."""
        row = int(self._find_rows(place, draft))
        (signals,) = make_signals(self._values[row : row + 1])
        return StepInfo(signals, partial(self._state, row))

    def _state(self, row: int, layer: int) -> State:
        if self._states is None:
            raise CapabilityError(
                "vLLM kept no hidden states in this step: another plug-in has replaced its logits layer"
            )
        found: State = self._states[1][int(np.searchsorted(self._states[0], row))].float().numpy()
        return found

    def swapped(self, place: int, draft: int) -> bool:
        """See `StepReadings`."""
        if self._swapped is None:
            places, swapped = self._swaps
            self._swapped = frozenset(map(int, places[swapped.numpy()]))
        return int(self._find_rows(place, draft)) in self._swapped

    def read_logits(
        self,
        logits: Tensor,
        signals: NDArray[np.int64],
        states: NDArray[np.int64],
        index: Tensor,
        kept: Tensor | None,
    ) -> None:
        """Start to copy the signals and hidden states of rows; `index` has those of signals, then those of states."""
        if len(signals):
            found = logit_signals(logits if len(signals) == len(logits) else logits[index[: len(signals)]])
            self._signals = signals, to_host(torch.stack((found.entropy, found.top, found.margin)))
        if len(states) and kept is not None and len(kept) == len(logits):  # else they are of other rows
            self._states = states, to_host(kept[index[len(signals) :]])

    def swap_ends(
        self, logits: Tensor, places: NDArray[np.int64], index: Tensor, firsts: Tensor, end: Sequence[int]
    ) -> None:
        """Where the model may end its turn within its thinking, let the first token of a closing stand for that.

        vLLM would end the request there, without an answer. Where a grammar forbids that token, the end stays, as it
        does where there is none (-1).
        """
        ends = index[:, None], _on_device(tuple(end), logits.device)
        wanted = logits[ends].amax(dim=1)
        instead = logits[index, firsts]  # -1 is the last column, which stays as it is
        allowed = (instead > -torch.inf) & (firsts >= 0)
        self._swaps = places, to_host((wanted > instead) & allowed)
        logits[index, firsts] = torch.where(allowed, torch.maximum(wanted, instead), instead)
        logits[ends] = logits[ends].masked_fill(allowed[:, None], -torch.inf)


@cache
def _on_device(ids: tuple[int, ...], device: torch.device) -> Tensor:
    return to_device(ids, device)


def force_tokens(logits: Tensor, index: Tensor, tokens: Tensor) -> None:
    """Make tokens certain in rows of logits, in place, but those that a grammar forbids, and -1."""
    found = logits[index, tokens]
    logits[index, tokens] = torch.where((found == -torch.inf) | (tokens < 0), found, _CERTAIN)


def apply_step(table: RowTable, slots: NDArray[np.int64], logits: Tensor, end: Sequence[int]) -> None:
    """Write what rows want into logits [rows, vocabulary], in place, and start to read what they need of it.

    `slots` are those of the rows of logits, `end` the tokens that end a turn. Nothing here waits for the device.
    """
    forced, offered, wanted = table.forced[slots], table.offered[slots], table.wanted[slots]
    parts = [np.flatnonzero(forced >= 0), np.flatnonzero(wanted & SIGNALS), np.flatnonzero(wanted & STATES)]
    parts.append(np.flatnonzero(offered >= 0))
    must, signals, states, swaps = parts
    readings = Readings(len(slots))
    table.note(slots, readings)
    if not any(map(len, parts)):
        return
    numbers = to_device(np.concatenate((*parts, forced[must], offered[swaps])), logits.device)
    where, reads, where_swaps, tokens, firsts = numbers.split(
        (len(must), len(signals) + len(states), len(swaps), len(must), len(swaps))
    )
    if len(must):
        force_tokens(logits, where, tokens)
    readings.read_logits(logits, signals, states, reads, kept_states())
    if len(swaps):
        readings.swap_ends(logits, swaps, where_swaps, firsts, end)


def kept_states() -> Tensor | None:
    """The hidden states of the rows of the present step's logits, [rows, width]; None without our logits layer."""
    return _kept[0] if _kept else None


class HiddenStateTap(LogitsProcessor):  # type: ignore[misc]
    """vLLM's logits layer, which also keeps a reference to what it was given: no copy, outside of compiled graphs."""

    def forward(self, lm_head: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor | None:
        """See the class it replaces."""
        _kept[:] = [hidden_states]
        # By name: a wrapper for LoRA calls this with itself, which is not an instance of this class.
        logits: Tensor | None = LogitsProcessor.forward(self, lm_head, hidden_states, *args, **kwargs)
        return logits


def install_tap() -> None:
    """Replace the logits layer of models that are built from now on, unless another plug-in has done so.

    A plug-in of vLLM's, which loads it in all of its processes; those of a server also end with it from now on.
    """
    end_with_parent()
    if "LogitsProcessor" not in op_registry_oot:
        PluggableLayer.register_oot(name="LogitsProcessor")(HiddenStateTap)
