"""Step hooks of the engine: logit signals for watchers, and transformers' streamers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ....kernels.signals import logit_signals
from ...types import DecodeStep, SequenceView, Signals, StepHook


class SignalsHook(StepHook):
    """Computes the signals of each step in one pass over the batch's logits."""

    def after_sample(self, step: DecodeStep) -> None:
        """See `StepHook.after_sample`."""
        step.signals = compute_signals(step.logits, step.tokens)


def compute_signals(logits: Tensor, tokens: Tensor) -> list[Signals]:
    """Signals of tokens [rows] sampled from the model's own logits [rows, vocabulary]; one wait for the device."""
    signals = logit_signals(logits)
    chosen = (logits.gather(1, tokens[:, None]).squeeze(1).float() - signals.log_total).exp()
    rows = torch.stack((signals.entropy, signals.top, chosen, signals.margin), dim=1)
    return [Signals(*row) for row in rows.tolist()]


class StreamerHook(StepHook):
    """Feeds a transformers streamer one token per sequence, as `generate` does; forced tokens come at once."""

    def __init__(self, streamer: Any, pad: int) -> None:
        self.streamer, self.pad = streamer, pad
        self._sequences: Sequence[SequenceView] = ()

    def start(self, sequences: Sequence[SequenceView]) -> None:
        """See `StepHook.start`."""
        self._sequences = sequences

    def after_step(self, step: DecodeStep) -> None:
        """See `StepHook.after_step`."""
        if not step.edits and not step.hidden_slots:
            self.streamer.put(step.tokens.cpu())
            return
        columns: list[tuple[int, ...]] = [
            () if slot in step.hidden_slots else (token,) for slot, token in enumerate(step.sampled)
        ]
        for slot, edit in step.edits.items():
            in_trial = getattr(self._sequences[slot], "trial", False)
            columns[slot] = (*columns[slot][edit.drop :], *(() if in_trial else edit.add))
        for place in range(max(map(len, columns))):
            self.streamer.put(torch.tensor([column[place] if place < len(column) else self.pad for column in columns]))

    def finish(self) -> None:
        """See `StepHook.finish`."""
        self.streamer.end()
