"""Step hooks of the engine: logit signals and hidden states for watchers, and transformers' streamers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ....errors import CapabilityError, OptionError
from ....kernels.signals import logit_signals
from ...types import TOP, Signals, State
from ..sequence import CacheEdit, SequenceState


@dataclass(slots=True)
class DecodeStep:
    """One step of the decode loop as hooks see it."""

    logits: Tensor  # [slots, vocabulary], the model's own
    tokens: Tensor  # [slots], sampled or queued
    signals: Sequence[Signals | None] | None = None  # by slot, set by a hook
    state_reader: Callable[[int], Callable[[int], State]] | None = None  # by slot, reads a hidden layer; set by a hook
    sampled: Sequence[int] = ()
    edits: Mapping[int, CacheEdit] = field(default_factory=dict)  # by slot, what watchers asked for
    hidden_slots: frozenset[int] = frozenset()
    """Slots whose sampled token is not part of the output (queued for, or in a trial)."""


class StepHook:
    """Follows the decoding of a batch. `slot` is a sequence's place in the batch, which moves up as others end."""

    def start(self, sequences: Sequence[SequenceState]) -> None:
        """The prompts have been read; these sequences are decoded now, in the order of their slots."""

    def after_sample(self, step: DecodeStep) -> None:
        """Tokens have been sampled; add to `step` what watchers may read."""

    def after_step(self, step: DecodeStep) -> None:
        """Watchers have spoken and their edits are known; nothing has been fed yet."""

    def select(self, slots: Sequence[int]) -> None:
        """Only the sequences in these slots, in rising order, stay in the batch."""

    def finish(self) -> None:
        """The last sequence has ended."""


class SignalsHook(StepHook):
    """Computes the signals of each step in one pass over the batch's logits, and their confidence in another."""

    def __init__(self, confidence: bool = False) -> None:
        self.confidence = confidence

    def after_sample(self, step: DecodeStep) -> None:
        step.signals = compute_signals(step.logits, step.tokens, self.confidence)


def compute_signals(logits: Tensor, tokens: Tensor, confidence: bool = False) -> list[Signals]:
    """Signals of tokens [rows] sampled from the model's own logits [rows, vocabulary]; one wait for the device."""
    signals = logit_signals(logits)
    chosen = (logits.gather(1, tokens[:, None]).squeeze(1).float() - signals.log_total).exp()
    found = [signals.entropy, signals.top, chosen, signals.margin]
    if confidence:
        likeliest = logits.topk(min(TOP, logits.shape[1]), dim=1).values.float()
        found.append(signals.log_total - likeliest.mean(dim=1))
    rows = torch.stack(found, dim=1)
    return [Signals(*row) for row in rows.tolist()]


class StreamerHook(StepHook):
    """Feeds a transformers streamer one token per sequence, as `generate` does; forced tokens come at once."""

    def __init__(self, streamer: Any, pad: int) -> None:
        self.streamer, self.pad = streamer, pad
        self._sequences: Sequence[SequenceState] = ()

    def start(self, sequences: Sequence[SequenceState]) -> None:
        self._sequences = sequences

    def after_step(self, step: DecodeStep) -> None:
        if not step.edits and not step.hidden_slots:
            self.streamer.put(step.tokens.cpu())
            return
        columns: list[tuple[int, ...]] = [
            () if slot in step.hidden_slots else (token,) for slot, token in enumerate(step.sampled)
        ]
        for slot, edit in step.edits.items():
            columns[slot] = (*columns[slot][edit.drop :], *(() if self._sequences[slot].trial else edit.add))
        for place in range(max(map(len, columns))):
            self.streamer.put(torch.tensor([column[place] if place < len(column) else self.pad for column in columns]))

    def finish(self) -> None:
        self.streamer.end()


class ModifierHook(StepHook):
    """What changes the forward pass of each sequence of a batch, by slot; None for those left alone."""

    def __init__(self, sequences: Sequence[Any]) -> None:
        self.sequences = list(sequences)

    def select(self, slots: Sequence[int]) -> None:
        self.sequences = [self.sequences[slot] for slot in slots]

    def find_active(self) -> list[bool]:
        """Which sequences are changed at this step; `active()` of each says so."""
        return [sequence is not None and sequence.active() for sequence in self.sequences]


class HiddenStates(StepHook):
    """Keeps the states of the last token fed to each row, [rows, width] per layer, until the next forward pass.

    Layers are counted as by transformers: 0 is the embedding, k the output of block k, the last the output of the final
    norm; negative ones count from the end. Another number is an OptionError.
    """

    def __init__(self, model: Any, layers: Collection[int]) -> None:
        self._last: dict[int, Tensor] = {}
        # All or none, so that no hook is left behind.
        places = {layer: find_decoder_layer(model, layer) for layer in layers}
        self._handles = [self._hook(*place, layer) for layer, place in places.items()]

    def _hook(self, place: nn.Module, at_input: bool, layer: int) -> Any:
        def after(module: nn.Module, inputs: Any, output: Any) -> None:
            value = output if isinstance(output, Tensor) else output[0]
            self._last[layer] = value[:, -1]

        def before(module: nn.Module, inputs: Any, named: Mapping[str, Any]) -> None:
            value = inputs[0] if inputs else named["hidden_states"]
            self._last[layer] = value[:, -1]

        if at_input:
            return place.register_forward_pre_hook(before, with_kwargs=True)
        return place.register_forward_hook(after)

    def after_sample(self, step: DecodeStep) -> None:
        step.state_reader = self.reader

    def read(self, layer: int, slot: int) -> State:
        """The state of a row by its slot, [width] on the host; raises OptionError for another layer."""
        return self.reader(slot)(layer)

    def reader(self, slot: int) -> Callable[[int], State]:
        """A function that reads the present states of a row by layer, however many forward passes follow."""
        return partial(_read, self._last.copy(), slot)

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()


def _read(last: Mapping[int, Tensor], slot: int, layer: int) -> State:
    if layer not in last:
        raise OptionError(f"hidden layer {layer} was not requested; the request's layers: {sorted(last)}")
    state: State = last[layer][slot].detach().to("cpu", torch.float32, copy=True).numpy()
    return state


def find_decoder_blocks(model: Any) -> nn.ModuleList | None:
    """The list of a model's blocks; None if it has none of the right length."""
    count = model.config.get_text_config(decoder=True).num_hidden_layers
    lists = (part for part in model.get_decoder().modules() if isinstance(part, nn.ModuleList) and len(part) == count)
    return next(lists, None)


def find_decoder_layer(model: Any, layer: int) -> tuple[nn.Module, bool]:
    """The module whose output, or (True) input, is a layer's hidden state; raises OptionError or CapabilityError."""
    count = model.config.get_text_config(decoder=True).num_hidden_layers
    index = layer + count + 1 if layer < 0 else layer
    if not 0 <= index <= count:
        raise OptionError(f"hidden layer {layer} does not exist; accepted: 0 to {count}, or -1 to {-count - 1}")
    if index == count:
        return model.get_decoder(), False
    blocks = find_decoder_blocks(model)
    if index == 0:
        # Learned positions are added after the embedding's module, so the first block's input is the better place.
        return (model.get_input_embeddings(), False) if blocks is None else (blocks[0], True)
    if blocks is None:
        raise CapabilityError(f"no list of {count} layers found in {type(model).__name__}; use layer -1")
    return blocks[index - 1], False
