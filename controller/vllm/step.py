"""One step of a batch, with or without drafts: what rows want goes into the logits, what they need of them is read."""

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
from .processes import end_with_parent
from .request_controller import LOUD
from .row_table import SIGNALS, STATES, RowTable, make_signals
from .token_history import to_device, to_host

_kept: list[Tensor] = []  # what the logits layer was given last: hidden states [rows, width]
_NO_PLACES = np.zeros(0, dtype=np.int64)
_NO_SWAPS = _NO_PLACES, torch.zeros(0, dtype=torch.bool)
_BOUND, _ROOM = 1, 2
"""Columns of what a slot wants under drafts: what is offered, `RowTable.bound`, room by kind, then forced tokens."""
_FORCED = _ROOM + LOUD + 1


class Readings:
    """What one step says about the next tokens, copied to the host while the device goes on; see `StepReadings`.

    It may be read once the tokens of the step are there.
    """

    def __init__(self, rows: int, starts: Tensor | None = None) -> None:
        self._rows, self._starts = rows, starts
        self._signals: tuple[NDArray[np.int64], Tensor] | None = None  # places, and [3, places]
        self._states: tuple[NDArray[np.int64], Tensor] | None = None  # places, and [places, width]
        self._swaps = _NO_SWAPS
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
        values: NDArray[np.float32] = self._values[self._find_rows(places, draft)]
        return values

    def info(self, place: int, draft: int) -> StepInfo:
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
        if self._swapped is None:
            places, swapped = self._swaps
            self._swapped = frozenset(map(int, places[swapped.numpy()]))
        return int(self._find_rows(place, draft)) in self._swapped

    def read_logits(
        self, logits: Tensor, signals: NDArray[np.int64], states: NDArray[np.int64], index: Tensor, kept: Tensor | None
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


def force_tokens(logits: Tensor, index: Tensor, tokens: Tensor, bound: Tensor) -> None:
    """Make tokens the only ones in rows of logits, in place, whatever was masked and whatever scales them later.

    Not -1, nor in rows that are `bound` what a grammar forbids.
    """
    found = logits[index, tokens]
    forced = (tokens >= 0) & ((bound == 0) | (found > -torch.inf))
    logits[index] = logits[index].masked_fill(forced[:, None], -torch.inf)
    logits[index, tokens] = found.masked_fill(forced, 0.0)


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
    numbers = to_device(np.concatenate((*parts, forced[must], table.bound[slots[must]], offered[swaps])), logits.device)
    where, reads, where_swaps, tokens, bound, firsts = numbers.split(
        (len(must), len(signals) + len(states), len(swaps), len(must), len(must), len(swaps))
    )
    if len(must):
        force_tokens(logits, where, tokens, bound)
    readings.read_logits(logits, signals, states, reads, kept_states())
    if len(swaps):
        readings.swap_ends(logits, swaps, where_swaps, firsts, end)


class DraftStep:
    """Writes what rows want into the logits of steps with drafts; `kinds` are those of the vocabulary.

    Of a request's rows, row i says what comes after its first i drafts, and is used only if all of these are accepted.
    What a controller wants is known up to the first token that it has to read, which most tokens are not, see
    `RowTable.room`. Such a draft is replaced by -1, vLLM's own sign for a draft that is none: the model then chooses
    the token there itself, which may be the same, and the step ends with it for this request. So no token is chosen
    before the controller has read what it decides by, and nothing changes but the number of steps. A token that is
    forced is forced in its own row, so that drafts of it are accepted. Which rows belong to whom is known on the device
    alone, and nothing here waits for that.
    """

    def __init__(self, kinds: NDArray[np.int8], drafts: int, slots: int, device: torch.device) -> None:
        self._kinds = to_device(kinds, device)
        self._wants = torch.full((slots, _FORCED + 1 + drafts), -1, dtype=torch.int64, device=device)
        self._starts = torch.zeros(slots, dtype=torch.int64, device=device)

    def apply(self, table: RowTable, context: Any, logits: Tensor, end: Sequence[int], before: int) -> None:
        """Act in logits [rows, vocabulary] and in vLLM's `LogitsContext`, as `apply_step` does without drafts.

        `before` are the rows of the same step that were given already: vLLM verifies large batches in parts.
        """
        slots = np.asarray(context.idx_mapping_np, dtype=np.int64)
        batch, owners = context.idx_mapping.long(), context.expanded_idx_mapping.long()
        local, rows = context.expanded_local_pos.long(), torch.arange(len(logits), device=logits.device)
        self._starts[owners] = rows - local
        readings = Readings(len(logits), to_host(self._starts[batch]))
        table.note(slots, readings)
        forced, offered = table.forced[slots], table.offered[slots]
        wanted = np.column_stack((offered, table.bound[slots], table.room(slots), forced, table.ahead[slots]))
        self._wants[batch] = to_device(wanted, logits.device)
        wants = self._wants[owners]
        self._reject_drafts(context.input_ids, local, wants)
        if (forced >= 0).any():
            force_tokens(logits, rows, wants[:, _FORCED:].gather(1, local[:, None])[:, 0], wants[:, _BOUND])
        asked, everyone = np.bitwise_or.reduce(table.wanted[slots]), np.arange(len(logits))
        signals, states = everyone if asked & SIGNALS else _NO_PLACES, everyone if asked & STATES else _NO_PLACES
        kept = kept_states()
        if kept is not None and before + len(logits) <= len(kept):
            kept = kept[before : before + len(logits)]
        readings.read_logits(logits, signals, states, rows.repeat(2) if len(signals) else rows, kept)
        if (offered >= 0).any():
            readings.swap_ends(logits, everyone, rows, wants[:, 0], end)

    def _reject_drafts(self, drafts: Tensor, local: Tensor, wants: Tensor) -> None:
        """Replace drafts that a controller has to read, [rows], in place; the draft of row i led to that row."""
        kinds = self._kinds[drafts.long().clamp(0, len(self._kinds) - 1)]
        room = wants[:, _ROOM:_FORCED].gather(1, kinds[:, None])[:, 0]
        drafts.masked_fill_((local > 0) & ((local > room) | (drafts == wants[:, 0])), -1)


def kept_states() -> Tensor | None:
    """The hidden states of the rows of the present step's logits, [rows, width]; None without our logits layer."""
    return _kept[0] if _kept else None


class HiddenStateTap(LogitsProcessor):  # type: ignore[misc]
    """vLLM's logits layer, which also keeps a reference to what it was given: no copy, outside of compiled graphs."""

    def forward(self, lm_head: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor | None:
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
