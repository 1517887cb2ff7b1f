"""The steps of a batch: pick a token for each row, hear what its watcher says, feed what follows from that."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ....errors import OptionError
from ...types import PromptRouter, State, StepInfo
from ..sequence import WAIT, CacheEdit, SequenceState
from .generation_rules import GenerationRules
from .hidden_states import HiddenStates
from .model_runner import ModelRunner
from .research.early_exit import EarlyExitRows
from .research.steering import SteeringHooks
from .sampler import Sampler
from .signals import compute_signals

_CROWDED = 0.75
"""Rows that have ended leave the batch once no more than this share of it is still at work."""
_CHUNK = {"cpu": 64}
_CHUNK_ELSEWHERE = 256
"""Most tokens, holes among them, that a forward may have for a chunk to pay: about as many as a device works off while
it fetches the weights. Beyond that, rows with several tokens are fed one at a time, while the others go on."""
_REST = 32
"""Steps for which a row may rest while others go on."""


def _unread(layer: int) -> State:
    raise OptionError(f"hidden layer {layer} was not asked for; name it in the request's layers")


class DecodeLoop:
    """One run; `ids` are what logits processors see, right-aligned, kept only where something reads them."""

    def __init__(
        self,
        stepper: ModelRunner,
        rules: GenerationRules,
        rows: list[SequenceState],
        ids: Tensor,
        mask: Tensor | None,
        streamer: Any,
        shrinks: bool,
    ) -> None:
        self.stepper, self.rules, self.rows, self.streamer = stepper, rules, rows, streamer
        self.measured = False
        self.states: HiddenStates | None = None
        self.steering: SteeringHooks | None = None
        self.leaving: Sequence[EarlyExitRows] = ()
        self.prompt, self.mask = ids, mask
        own = not hasattr(stepper, "feed")
        self.ids: Tensor | None = ids if rules.reads_ids or own else None
        self.leads: list[int] | None = None
        self.done = torch.zeros(len(rows), dtype=torch.bool, device=ids.device)
        self.shrinks = shrinks and stepper.ragged and self.ids is None and streamer is None
        self.picker = Sampler(rules, ids)
        self._rested = 0

    def open(self, openings: Sequence[PromptRouter], states: HiddenStates) -> Tensor:
        """Go on with the prompts as their openings choose; return the logits after them, [rows, vocabulary]."""
        stepper: Any = self.stepper
        edits: dict[int, CacheEdit] = {}
        temperatures: list[float | None] = []
        width = self.prompt.shape[1]
        sizes = [width] * len(self.rows) if self.mask is None else self.mask[:, -width:].sum(1).tolist()
        for row, opening, size in zip(self.rows, openings, sizes, strict=True):
            opened = opening.choose(states.read(opening.layer, row.slot))
            row.reread = size if opened.apart else 0
            edits[row.slot] = CacheEdit(opened.ids, row.reread, row.reread, opened.ids)
            temperatures.append(opened.temperature)
            row.last_prompt_token = opened.ids[-1]
            row.watch(opened.watcher)
        self.picker.warm(temperatures)
        self._unfeed(edits)
        if self.ids is not None:
            self._edit_ids(self.ids, edits)
        logits: Tensor = stepper.feed([edit.feed for edit in edits.values()])
        return logits

    def run(self, logits: Tensor) -> None:
        """Go from the logits after the prompt, [rows, vocabulary], to the end of the last row."""
        live = self.rows
        padding = False
        while True:
            trials = {row.slot for row in live if row.trial}
            tokens = self.picker.pick(logits, self.ids, [row.slot for row in live if row.trial and not row.drawn])
            if padding:
                tokens = torch.where(self.done, self.rules.pad, tokens)
            queued = {row.slot for row in live if row.queue}
            if queued:
                tokens = self._queued(tokens)
            if self.ids is not None:
                self.ids = torch.cat([self.ids, tokens[:, None]], dim=-1)
            sampled, stops = self._to_host(tokens)
            seen = self._seen(logits, tokens)
            edits: dict[int, CacheEdit] = {}
            ended = False
            for row in live:
                slot = row.slot
                if row.pending is not None:
                    edits[slot] = WAIT
                    continue
                if row.queue:
                    row.queue.popleft()
                    continue
                stop = stops is not None and stops[slot]
                edit = row.advance(sampled[slot], stop, seen[slot] if seen is not None else None)
                if edit is not None:
                    edits[slot] = edit
                if row.finish is not None:
                    ended = True
                    if row.tell is not None:
                        row.tell(row.completion())
            ended |= self._end_rests(live, edits)
            if self.streamer is not None:
                self._stream(tokens, sampled, edits, queued.union(trials))
            if ended:
                live = [row for row in live if row.finish is None]
                if not live:
                    return
                if self.shrinks and len(live) <= _CROWDED * len(self.rows):
                    tokens, sampled, edits = self._shrink(live, tokens, sampled, edits)
                self.done = torch.tensor([row.finish is not None for row in self.rows], device=self.done.device)
                if self.rules.pads:
                    padding = True
                    self.stepper.freeze(self.done)
            logits = self._feed_edits(tokens, sampled, edits) if edits else self.stepper.step(tokens[:, None], self.ids)

    def _end_rests(self, live: list[SequenceState], edits: dict[int, CacheEdit]) -> bool:
        """Wake the rows that rest, all at once, when the others are through or have gone on alone for a while.

        So what they rest for is worked out for many rows in one go, and when that is depends on no clock. Returns
        whether a row ended with that.
        """
        resting = [row for row in live if row.pending is not None]
        if not resting:
            return False
        self._rested += 1
        if len(resting) < sum(row.finish is None for row in live) and self._rested < _REST:
            return False
        self._rested = 0
        for row in resting:
            assert row.pending is not None
            row.pending.wait()
            edits[row.slot] = row.wake(edits[row.slot])
            if row.finish is not None and row.tell is not None:
                row.tell(row.completion())
        return any(row.finish is not None for row in resting)

    def _seen(self, logits: Tensor, tokens: Tensor) -> list[StepInfo] | None:
        """What watchers may know of this step, by place in the batch; None where nobody asks."""
        if not self.measured and self.states is None:
            return None
        signals = compute_signals(logits, tokens) if self.measured else [None] * len(self.rows)
        readers = [_unread if self.states is None else self.states.reader(slot) for slot in range(len(self.rows))]
        return [StepInfo(some, reader) for some, reader in zip(signals, readers, strict=True)]

    def _shrink(
        self, live: list[SequenceState], tokens: Tensor, sampled: list[int], edits: dict[int, CacheEdit]
    ) -> tuple[Tensor, list[int], dict[int, CacheEdit]]:
        """Take the rows that have ended out of the batch, and out of what the step has made."""
        slots = [row.slot for row in live]
        keep = torch.tensor(slots, device=tokens.device)
        stepper: Any = self.stepper
        stepper.keep(keep)
        self.picker.keep(keep)
        if self.steering is not None:
            self.steering.keep(slots)
        for part in self.leaving:
            part.keep(slots)
        self.rows = live
        for slot, row in enumerate(live):
            row.slot = slot
        moved = {new: edits[old] for new, old in enumerate(slots) if old in edits}
        return tokens[keep], [sampled[slot] for slot in slots], moved

    def _to_host(self, tokens: Tensor) -> tuple[list[int], list[bool] | None]:
        """Fetch the tokens and, where there are criteria to ask, their verdicts: one wait for the device."""
        if not self.rules.criteria:
            return tokens.tolist(), None
        stops = self.rules.criteria(self.ids, tuple(self.picker.scores) if self.rules.record_scores else None)
        both = torch.stack((tokens, stops.to(tokens.device, tokens.dtype))).tolist()
        return both[0], [bool(stop) for stop in both[1]]

    def _queued(self, tokens: Tensor) -> Tensor:
        """Put the next queued token of each row in place of the sampled one."""
        tokens = tokens.clone()
        for row in self.rows:
            if row.queue:
                tokens[row.slot] = row.queue[0]
        return tokens

    def _feed_edits(self, tokens: Tensor, sampled: list[int], edits: dict[int, CacheEdit]) -> Tensor:
        """Carry the edits out and run the forward they lead to."""
        self._unfeed(edits)
        if not self.rows[0].ragged or self._too_many(edits):
            for index, edit in edits.items():
                tokens[index] = edit.feed[0]
                if self.rows[index].finish is None:
                    self.rows[index].queue.extend(edit.feed[1:])
            if self.ids is not None:
                self.ids[:, -1] = tokens
            return self.stepper.step(tokens[:, None], self.ids)
        if self.ids is not None:
            self._edit_ids(self.ids, edits)
        # A row that ended takes one token like the others; what it holds no longer matters.
        feeds = [
            edits[index].feed if index in edits and self.rows[index].finish is None else (token,)
            for index, token in enumerate(sampled)
        ]
        stepper: Any = self.stepper
        logits: Tensor = stepper.feed(feeds)
        return logits

    def _unfeed(self, edits: dict[int, CacheEdit]) -> None:
        """Make the model forget what is taken back."""
        stepper: Any = self.stepper
        for index, edit in edits.items():
            if edit.unfeed:
                stepper.unfeed(index, edit.unfeed)

    def _too_many(self, edits: dict[int, CacheEdit]) -> bool:
        """Whether the rows are better fed one token at a time: a chunk pads all of them to its longest."""
        size = max(len(edit.feed) for edit in edits.values())
        most = _CHUNK.get(self.done.device.type, _CHUNK_ELSEWHERE)
        rests = any(not edit.feed or self.rows[index].pending for index, edit in edits.items())
        rows = sum(row.finish is None for row in self.rows)  # whether those that have ended are still there or not
        return size > 1 and size * rows > most and self.ids is None and not rests

    def _edit_ids(self, ids: Tensor, edits: dict[int, CacheEdit]) -> None:
        """Rebuild the ids after rows grew unequally: right-aligned, padded on the left as little as can be."""
        width = ids.shape[1]
        if self.leads is None:
            prompt = self.prompt.shape[1]
            self.leads = [0] * len(self.rows) if self.mask is None else (self.mask[:, -prompt:] == 0).sum(1).tolist()
        kept, added = [], []
        for index, lead in enumerate(self.leads):
            edit = edits.get(index)
            kept.append(ids[index, lead : width - edit.drop] if edit else ids[index, lead:])
            added.append(ids.new_tensor(edit.add if edit else ()))
        lengths = [len(old) + len(new) for old, new in zip(kept, added, strict=True)]
        width = max(lengths)
        self.leads = [width - length for length in lengths]
        self.ids = ids.new_full((len(lengths), width), self.rules.pad)
        for index, lead in enumerate(self.leads):
            self.ids[index, lead:] = torch.cat([kept[index], added[index]])

    def _stream(self, tokens: Tensor, sampled: list[int], edits: dict[int, CacheEdit], hidden: set[int]) -> None:
        """Show a streamer the step as `generate` does, one token a row; forced tokens come as soon as decided on.

        The sampled tokens of `hidden` rows are not for it: they stand for queued ones, or are part of a trial.
        """
        if not edits and not hidden:
            self.streamer.put(tokens.cpu())
            return
        columns: list[tuple[int, ...]] = [() if index in hidden else (token,) for index, token in enumerate(sampled)]
        for index, edit in edits.items():
            columns[index] = (*columns[index][edit.drop :], *(() if self.rows[index].trial else edit.add))
        for place in range(max(map(len, columns))):
            self.streamer.put(
                torch.tensor([column[place] if place < len(column) else self.rules.pad for column in columns])
            )
