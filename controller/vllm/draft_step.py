"""One step of speculative decoding on runner V2, where several rows of logits belong to one request.

Of a request's rows, row i says what comes after its first i drafts, and is used only if all of these are accepted. What
a controller wants is known up to the first token that it has to read, which most tokens are not, see
`RowTable.room`. Such a draft is replaced by -1, vLLM's own sign for a draft that is none: the model then chooses the
token there itself, which may be the same, and the step ends with it for this request. So no token is chosen before the
controller has read what it decides by, and nothing changes but the number of steps. A token that is forced is forced in
its own row, so that drafts of it are accepted. Which rows belong to whom is known on the device alone, and nothing here
waits for that.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .request_controller import LOUD
from .row_table import SIGNALS, STATES, RowTable
from .step import Readings, force_tokens, kept_states
from .transfers import to_device, to_host

_NONE = np.zeros(0, dtype=np.int64)
_ROOM = 1
"""Columns of what a slot wants: what is offered, then room by the kind of the token, then tokens that are forced."""
_FORCED = _ROOM + LOUD + 1


class DraftStep:
    """Writes what rows want into the logits of steps with drafts; `kinds` are those of the vocabulary."""

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
        wanted = np.column_stack((offered, table.room(slots), forced, table.ahead[slots]))
        self._wants[batch] = to_device(wanted, logits.device)
        wants = self._wants[owners]
        self._reject_drafts(context.input_ids, local, wants)
        if (forced >= 0).any():
            force_tokens(logits, rows, wants[:, _FORCED:].gather(1, local[:, None])[:, 0])
        asked, everyone = np.bitwise_or.reduce(table.wanted[slots]), np.arange(len(logits))
        signals, states = everyone if asked & SIGNALS else _NONE, everyone if asked & STATES else _NONE
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
