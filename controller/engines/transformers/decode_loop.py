"""The decode loop of a batch: sample one token per sequence, apply what its watcher decides, run the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ....errors import OptionError
from ...types import State, StepInfo
from ..sequence import WAIT, CacheEdit, SequenceState
from .hooks import DecodeStep, StepHook
from .model_runner import ModelRunner, RaggedRunner
from .sampler import Sampler


class IdHistory:
    """Prompt and output ids of a batch, right-aligned.

    Of the prompt, ids [sequences, length], the mask is 0 where it is padding. `pad` fills rows after sequences grew
    unequally, and `kept` says whether anything reads the ids; `tensor` is None otherwise.
    """

    def __init__(self, prompt: Tensor, mask: Tensor | None, pad: int, kept: bool) -> None:
        self.prompt, self.mask, self.pad = prompt, mask, pad
        self.tensor: Tensor | None = prompt if kept else None
        self._padding: list[int] | None = None

    def append(self, tokens: Tensor) -> None:
        if self.tensor is not None:
            self.tensor = torch.cat([self.tensor, tokens[:, None]], dim=-1)

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


_SHRINK_BELOW = 0.75  # ended sequences leave the batch once at most this share of it is still running
_MAX_CHUNK = {"cpu": 64}
_MAX_CHUNK_ELSEWHERE = 256
"""Most tokens, holes included, of a forward pass over several tokens per sequence: about as many as a device computes
while it fetches the weights. Beyond that, sequences with several tokens are fed one at a time."""
_MAX_WAIT_STEPS = 32  # steps for which a sequence may wait while others continue


class DecodeLoop:
    """Decodes one batch; `shrinks` tells whether ended sequences may leave it."""

    def __init__(
        self,
        runner: ModelRunner,
        sampler: Sampler,
        sequences: list[SequenceState],
        hooks: Sequence[StepHook],
        ids: IdHistory,
        shrinks: bool,
    ) -> None:
        self.runner, self.sampler, self.hooks, self.ids = runner, sampler, hooks, ids
        self.sequences = sequences  # by slot, ended ones included until the batch shrinks
        self.live = list(sequences)
        self.shrinks = shrinks
        self.done = torch.zeros(len(sequences), dtype=torch.bool, device=ids.prompt.device)
        self._pads = False
        self._waited = 0

    def run(self, logits: Tensor) -> None:
        """Decode from the logits after the prompts, [slots, vocabulary], to the end of the last sequence."""
        for hook in self.hooks:
            hook.start(self.sequences)
        while True:
            step, stops = self._sample(logits)
            edits, ended = self._observe(step, stops)
            step.edits = edits
            for hook in self.hooks:
                hook.after_step(step)
            if ended:
                self.live = [sequence for sequence in self.live if sequence.finish is None]
                if not self.live:
                    break
                edits = self._retire(step, edits)
            logits = self._forward(step, edits)
        for hook in self.hooks:
            hook.finish()

    def _sample(self, logits: Tensor) -> tuple[DecodeStep, Sequence[bool] | None]:
        """Sample a token per slot; return the step, and per slot whether a stopping criterion is met."""
        greedy = [s.slot for s in self.live if s.trial and not s.trial_sampled]
        tokens = self.sampler.sample(logits, self.ids.tensor, greedy)
        if self._pads:
            tokens = torch.where(self.done, self.sampler.rules.pad, tokens)
        queued = [s for s in self.sequences if s.queue]
        if queued:
            tokens = tokens.clone()
            for sequence in queued:
                tokens[sequence.slot] = sequence.queue[0]
        self.ids.append(tokens)
        sampled, stops = self.sampler.to_host(tokens, self.ids.tensor)
        hidden = {s.slot for s in self.live if s.trial} | {s.slot for s in self.live if s.queue}
        step = DecodeStep(logits, tokens, sampled=sampled, hidden_slots=frozenset(hidden))
        for hook in self.hooks:
            hook.after_sample(step)
        return step, stops

    def _observe(self, step: DecodeStep, stops: Sequence[bool] | None) -> tuple[dict[int, CacheEdit], bool]:
        """Show each sequence its token; return the edits by slot, and whether a sequence has ended."""
        edits: dict[int, CacheEdit] = {}
        ended = False
        informed = step.signals is not None or step.state_reader is not None
        for sequence in self.live:
            slot = sequence.slot
            if sequence.waiting_for is not None:
                edits[slot] = WAIT
                continue
            if sequence.queue:
                sequence.queue.popleft()
                continue
            info = _step_info(step, slot) if informed else None
            edit = sequence.advance(step.sampled[slot], stops is not None and stops[slot], info)
            if edit is not None:
                edits[slot] = edit
            if sequence.finish is not None:
                ended = True
                if sequence.notify is not None:
                    sequence.notify(sequence.completion())
        return edits, self._wake_waiting(edits) or ended

    def _wake_waiting(self, edits: dict[int, CacheEdit]) -> bool:
        """Wake suspended sequences, all at once, when the others have ended or continued alone for a while.

        So what they wait for is computed for many sequences at once, and does not depend on any clock. Returns whether
        a sequence ended with that.
        """
        waiting = [sequence for sequence in self.live if sequence.waiting_for is not None]
        if not waiting:
            return False
        self._waited += 1
        running = sum(sequence.finish is None for sequence in self.live)
        if len(waiting) < running and self._waited < _MAX_WAIT_STEPS:
            return False
        self._waited = 0
        for sequence in waiting:
            edits[sequence.slot] = sequence.wake(edits[sequence.slot])
            if sequence.finish is not None and sequence.notify is not None:
                sequence.notify(sequence.completion())
        return any(sequence.finish is not None for sequence in waiting)

    def _retire(self, step: DecodeStep, edits: dict[int, CacheEdit]) -> dict[int, CacheEdit]:
        """Stop sampling for ended sequences, or take them out of the batch; return the edits by their new slots."""
        if self.shrinks and len(self.live) <= _SHRINK_BELOW * len(self.sequences):
            edits = self._shrink(step, edits)
        self.done = torch.tensor([s.finish is not None for s in self.sequences], device=self.done.device)
        if self.sampler.rules.pads:
            self._pads = True
            self.runner.pin(self.done)
        return edits

    def _shrink(self, step: DecodeStep, edits: dict[int, CacheEdit]) -> dict[int, CacheEdit]:
        slots = [sequence.slot for sequence in self.live]
        keep = torch.tensor(slots, device=step.tokens.device)
        assert isinstance(self.runner, RaggedRunner)  # `shrinks` says so
        self.runner.select_rows(keep)
        self.sampler.select_rows(keep)
        for hook in self.hooks:
            hook.select(slots)
        self.sequences = list(self.live)
        for slot, sequence in enumerate(self.sequences):
            sequence.slot = slot
        step.tokens, step.sampled = step.tokens[keep], [step.sampled[slot] for slot in slots]
        return {new: edits[old] for new, old in enumerate(slots) if old in edits}

    def _forward(self, step: DecodeStep, edits: dict[int, CacheEdit]) -> Tensor:
        """Feed the sampled tokens, with the edits applied; return the logits after them."""
        tokens = step.tokens
        if not edits:
            return self.runner.step(tokens[:, None], self.ids.tensor)
        for slot, edit in edits.items():
            if edit.unfeed:
                assert isinstance(self.runner, RaggedRunner)  # the sequence has checked
                self.runner.rollback(slot, edit.unfeed)
        if not isinstance(self.runner, RaggedRunner) or not self.runner.ragged or self._is_too_wide(edits):
            for slot, edit in edits.items():
                tokens[slot] = edit.feed[0]
                if self.sequences[slot].finish is None:
                    self.sequences[slot].queue.extend(edit.feed[1:])
            if self.ids.tensor is not None:
                self.ids.tensor[:, -1] = tokens
            return self.runner.step(tokens[:, None], self.ids.tensor)
        self.ids.apply(edits)
        # An ended sequence takes one token like the others; its cache no longer matters.
        rows = [
            edits[slot].feed if slot in edits and self.sequences[slot].finish is None else (token,)
            for slot, token in enumerate(step.sampled)
        ]
        return self.runner.forward(rows)

    def _is_too_wide(self, edits: dict[int, CacheEdit]) -> bool:
        """Whether to feed one token at a time: a chunk pads all sequences to its longest."""
        size = max(len(edit.feed) for edit in edits.values())
        most = _MAX_CHUNK.get(self.done.device.type, _MAX_CHUNK_ELSEWHERE)
        waits = any(not edit.feed or self.sequences[slot].waiting_for for slot, edit in edits.items())
        running = sum(s.finish is None for s in self.sequences)
        return size > 1 and size * running > most and self.ids.tensor is None and not waits


def _step_info(step: DecodeStep, slot: int) -> StepInfo:
    signals = None if step.signals is None else step.signals[slot]
    return StepInfo(signals, _unread if step.state_reader is None else step.state_reader(slot))


def _unread(layer: int) -> State:
    raise OptionError(f"hidden layer {layer} was not requested; name it in the request's layers")
