"""Depth shortcut (System-1.5 Reasoning, arXiv 2505.18962): easy thinking tokens leave before the upper layers.

A gate lets tokens go, and an adapter stands in for the upper layers. Later tokens need a key and a value of every token
in every layer: those of the skipped layers are computed from the state with which the token left, by their own
projections. Where all sequences of a step leave, nothing else of these layers is computed; where some stay, the layers
run for all and the others' results are ignored, so a mixed batch gets the same tokens and gains no time. Prompt,
answer, trial answers and forced tokens are read in full.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, silu

from .....errors import CapabilityError, OptionError
from .....models import find_cache
from .....probes.research.learned import Shortcut
from ....probe_registry import load_learned
from ....types import BindContext, ForwardModifier, SequenceModifier
from ...sequence import SequenceState
from ..hooks import ModifierHook, StepHook, find_decoder_blocks

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
"""Model types whose blocks compute keys and values as `_fill` does; a test compares them."""
EPS = 1e-6

Choose = Callable[[Tensor], Tensor | None]
"""From states [sequences, positions, width] to which of them leave, [sequences, positions]; None for none."""


def _check_family(model: Any) -> None:
    kind = model.config.get_text_config(decoder=True).model_type
    if kind not in FAMILIES:
        raise CapabilityError(f"tokens of a {kind!r} model cannot leave early; accepted: {', '.join(FAMILIES)}")


def scaled(states: Tensor) -> Tensor:
    """States divided by their root mean square, as layers differ in scale by orders of magnitude."""
    return states * torch.rsqrt(states.pow(2).mean(-1, keepdim=True) + EPS)


def apply_adapter(parts: Any, states: Tensor) -> Tensor:
    """The adapter of `probes.research.learned.Shortcut`, on tensors by name."""
    inner = silu(linear(scaled(states), parts["down"], parts["down_bias"]))
    return states + linear(inner, parts["up"], parts["up_bias"])


def score(parts: Any, states: Tensor) -> Tensor:
    """The gate's score for leaving, [...]: that of `probes.research.learned.Shortcut`, on tensors by name."""
    inner = silu(linear(scaled(states), parts["gate_in"], parts["gate_in_bias"]))
    found: Tensor = inner @ parts["gate_out"] + parts["gate_out_bias"]
    return found


@contextmanager
def early_exit(model: Any, layer: int, adapt: Callable[[Tensor], Tensor], choose: Choose) -> Iterator[None]:
    """**Changes the forward of the upper blocks** until the end of the `with`: chosen tokens leave after the layer.

    Raises CapabilityError for a model that computes keys and values in another way, OptionError for an unknown layer.
    """
    _check_family(model)
    blocks: list[Any] = list(find_decoder_blocks(model) or ())
    if not 0 < layer < len(blocks):
        raise OptionError(f"nothing can leave after hidden layer {layer}; accepted: 1 to {len(blocks) - 1}")
    below, *upper = blocks[layer - 1 :]
    going = _ExitState(adapt, choose)
    before = [vars(block).get("forward") for block in upper]
    handle = below.register_forward_hook(going.look)
    try:
        for block in upper:
            block.forward = going.through(block, last=block is upper[-1])
        yield
    finally:
        handle.remove()
        for block, own in zip(upper, before, strict=True):
            if own is not None:
                block.forward = own
            else:
                vars(block).pop("forward", None)


class _ExitState:
    """Which tokens leave in the current forward pass."""

    def __init__(self, adapt: Callable[[Tensor], Tensor], choose: Choose) -> None:
        self._adapt, self._choose = adapt, choose
        self._mask: Tensor | None = None  # [rows, positions, 1]
        self._all = False
        self._states = torch.empty(0)

    def look(self, module: nn.Module, inputs: Any, output: Any) -> None:
        """A hook after the layer that decides which tokens leave."""
        states = output if isinstance(output, Tensor) else output[0]
        mask = self._choose(states)
        self._mask = None if mask is None else mask[..., None]
        self._all = mask is not None and bool(mask.all())
        self._states = states

    def through(self, block: Any, last: bool) -> Callable[..., Any]:
        """The forward of an upper block without the tokens that leave."""
        inner = block.forward

        def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
            if self._mask is None:
                return inner(hidden_states, *args, **kwargs)
            out = hidden_states
            if self._all:
                _fill(block, hidden_states, kwargs)
            else:
                out = inner(hidden_states, *args, **kwargs)
            after = self._adapt(self._states) if last else self._states
            return after if self._all else torch.where(self._mask, after, out)

        return forward


def _fill(block: Any, states: Tensor, given: Any) -> None:
    """Write keys and values of states [rows, positions, width] into the cache, as the block's attention would."""
    _, cache = find_cache(given)
    if cache is None:
        return
    attention = block.self_attn
    inputs = block.input_layernorm(states)
    shape = (*inputs.shape[:-1], -1, attention.head_dim)
    keys, values = attention.k_proj(inputs).view(shape), attention.v_proj(inputs).view(shape)
    if hasattr(attention, "k_norm"):
        keys = attention.k_norm(keys)
    turn = sys.modules[type(attention).__module__].apply_rotary_pos_emb
    _, keys = turn(keys[:, :, :0].transpose(1, 2), keys.transpose(1, 2), *given["position_embeddings"])
    cache.update(keys, values.transpose(1, 2), attention.layer_idx)


@dataclass(frozen=True, slots=True)
class DepthShortcut(ForwardModifier):
    """Let thinking tokens leave early, as `tersely train shortcut` has learned it for the model.

    The result is the thinking of a slightly different model: hidden states above the layer, and certificates of
    policies, do not hold for tokens that left.
    """

    name: ClassVar[str] = "shortcut"
    probes: str | None = None  # folder of the training; None uses a pretrained shortcut
    threshold: float | None = None  # used in place of the one that was chosen; a higher one lets fewer tokens leave
    shortcut: Shortcut | None = field(default=None, repr=False, hash=False)  # used in place of that of a folder

    @property
    def provenance(self) -> frozenset[str]:
        return frozenset() if self.shortcut is None else self.shortcut.learned_from

    def bind(self, context: BindContext) -> Self:
        """See `ForwardModifier.bind`.

        Raises ProbeError without a shortcut for this model, ArtifactError for another model's, OptionError where none
        of its thresholds was useful and none is given, and CapabilityError for another architecture.
        """
        if (model := getattr(context.engine, "model", None)) is not None:
            _check_family(model)
        remedy = "train one with `tersely train shortcut`, and pass its folder (probes)"
        shortcut = load_learned(context, self.shortcut, self.probes, Shortcut, remedy)
        return replace(self, threshold=shortcut.chosen(self.threshold), shortcut=shortcut)

    def attach(self, boundary: Callable[[], str | None]) -> SequenceModifier:
        self._require_bound()
        return LeavingSequence(self, lambda: boundary() is not None)

    @contextmanager
    def install(self, model: Any, sequences: Sequence[SequenceModifier | None]) -> Iterator[StepHook]:
        shortcut, threshold = self._require_bound()
        hook = _EarlyExitHook(shortcut, threshold, sequences)
        with early_exit(model, shortcut.layer, hook.adapt, hook.choose):
            yield hook

    def _require_bound(self) -> tuple[Shortcut, float]:
        if self.shortcut is None or self.threshold is None:
            raise TypeError("DepthShortcut must be bound to an engine first; a session does that")
        return self.shortcut, self.threshold


@dataclass(eq=False, slots=True)
class LeavingSequence(SequenceModifier):
    """One sequence whose tokens may leave while `active()`, with the counts of those that left and stayed."""

    modifier: DepthShortcut
    left: int = 0
    stayed: int = 0

    def summary(self) -> tuple[str, str]:
        shortcut = self.modifier.shortcut
        assert shortcut is not None  # it was attached
        total = self.left + self.stayed
        layers = f"layer {shortcut.layer} of {shortcut.layers}"
        return "leave", f"{self.left} of {total} thinking tokens left after {layers}"


class _EarlyExitHook(ModifierHook):
    """Which sequences of a batch may leave at this step; counts in them which do."""

    def __init__(self, shortcut: Shortcut, threshold: float, leaving: Sequence[SequenceModifier | None]) -> None:
        super().__init__(leaving)
        self.shortcut, self.threshold = shortcut, threshold
        self._in_flight: list[SequenceState] = []
        self._parts: dict[str, Tensor] = {}  # of the shortcut, with the device and dtype of the model

    def start(self, sequences: Sequence[SequenceState]) -> None:
        self._in_flight = list(sequences)

    def select(self, slots: Sequence[int]) -> None:
        super().select(slots)
        self._in_flight = [self._in_flight[slot] for slot in slots]

    def adapt(self, states: Tensor) -> Tensor:
        """The input of the last norm, [..., width]."""
        return apply_adapter(self._parts_like(states), states)

    def choose(self, states: Tensor) -> Tensor | None:
        """Of each sequence the last token fed, where the sequence thinks and the gate lets it go.

        Of a chunk, all but the last tokens stay: forced tokens are read in full however they are fed. Sequences that
        have ended or wait are fed for the others' sake; they stay as well, and are not counted.
        """
        may_leave = [
            one is not None and sequence.sampling_next and one.active()
            for one, sequence in zip(self.sequences, self._in_flight, strict=False)
        ]
        if not any(may_leave):
            return None
        leaves = (score(self._parts_like(states), states[:, -1]) >= self.threshold).tolist()
        leaves = [allowed and leaving for allowed, leaving in zip(may_leave, leaves, strict=True)]
        for one, allowed, leaving in zip(self.sequences, may_leave, leaves, strict=True):
            if allowed:
                one.left, one.stayed = one.left + leaving, one.stayed + (not leaving)
        if not any(leaves):
            return None
        mask = torch.zeros(states.shape[:2], dtype=torch.bool)
        mask[:, -1] = torch.tensor(leaves)
        return mask.to(states.device)

    def _parts_like(self, states: Tensor) -> dict[str, Tensor]:
        if not self._parts:
            # Copies: torch does not take read-only arrays.
            arrays = self.shortcut.arrays.items()
            self._parts = {name: torch.from_numpy(array.copy()).to(states) for name, array in arrays}
        return self._parts
