"""Leaving the forward early: tokens that a gate lets go take an adapter in place of the upper layers.

The depth shortcut of System-1.5 Reasoning (arXiv 2505.18962). Later tokens find a key and a value of every token in
every layer: those of the skipped layers are made from the state with which the token left, by their own projections.
Where all rows of a step leave, nothing else of these layers is computed; where some stay, the layers run for all and
what they say of the others is put aside, so that a mixed batch gets the same tokens and gains no time.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, silu

from .....errors import CapabilityError, OptionError
from ....types import EarlyExit

if TYPE_CHECKING:
    from .....probes.research.shortcut import Shortcut
    from ...sequence import SequenceState

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
"""Model types whose blocks make keys and values as `_fill` does; a test compares
them."""
EPS = 1e-6

Choose = Callable[[Tensor], Tensor | None]
"""From states [rows, positions, width] to which of them leave, [rows, positions]; None for none."""


def supports_early_exit(model: Any) -> bool:
    """Whether tokens of this model may leave early."""
    return model.config.get_text_config(decoder=True).model_type in FAMILIES


class EarlyExitHead:
    """The adapter and the gate of a shortcut as tensors, on the device and in the type of a model."""

    def __init__(self, shortcut: Shortcut, like: Tensor) -> None:
        self.parts = {
            # A copy: torch does not take arrays that nobody may write to.
            name: torch.from_numpy(array.copy()).to(like.device, like.dtype)
            for name, array in shortcut.arrays.items()
        }

    def adapted(self, states: Tensor) -> Tensor:
        """What goes into the last norm, [..., width]."""
        return apply_adapter(self.parts, states)

    def score(self, states: Tensor) -> Tensor:
        """By how much the gate is for leaving, [...]."""
        return score(self.parts, states)


def scaled(states: Tensor) -> Tensor:
    """States over their root mean square: layers differ in the size of theirs by orders of magnitude."""
    return states * torch.rsqrt(states.pow(2).mean(-1, keepdim=True) + EPS)


def apply_adapter(parts: Any, states: Tensor) -> Tensor:
    """The adapter of `probes.shortcut.Shortcut`, on tensors by name."""
    inner = silu(linear(scaled(states), parts["down"], parts["down_bias"]))
    return states + linear(inner, parts["up"], parts["up_bias"])


def score(parts: Any, states: Tensor) -> Tensor:
    """The gate of `probes.shortcut.Shortcut`, on tensors by name."""
    inner = silu(linear(scaled(states), parts["gate_in"], parts["gate_in_bias"]))
    found: Tensor = inner @ parts["gate_out"] + parts["gate_out_bias"]
    return found


@contextmanager
def early_exit(model: Any, layer: int, adapt: Callable[[Tensor], Tensor], choose: Choose) -> Iterator[None]:
    """**Changes the forward of the upper blocks** until the end of the `with`: what is chosen leaves after the layer.

    Raises CapabilityError for a model whose keys and values are made in another way, OptionError for a layer that it
    does not have.
    """
    if not supports_early_exit(model):
        kind = model.config.get_text_config(decoder=True).model_type
        raise CapabilityError(f"tokens of a {kind!r} model cannot leave early; accepted: {', '.join(FAMILIES)}")
    blocks = _blocks(model)
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


def _blocks(model: Any) -> list[Any]:
    decoder: nn.Module = model.get_decoder()
    count = model.config.get_text_config(decoder=True).num_hidden_layers
    lists = (part for part in decoder.modules() if isinstance(part, nn.ModuleList) and len(part) == count)
    return list(next(lists))


class _ExitState:
    """What leaves in the forward under way."""

    def __init__(self, adapt: Callable[[Tensor], Tensor], choose: Choose) -> None:
        self._adapt, self._choose = adapt, choose
        self._mask: Tensor | None = None  # [rows, positions, 1]
        self._all = False
        self._states = torch.empty(0)

    def look(self, module: nn.Module, inputs: Any, output: Any) -> None:
        """A hook after the layer: settle who leaves."""
        states = output if isinstance(output, Tensor) else output[0]
        mask = self._choose(states)
        self._mask = None if mask is None else mask[..., None]
        self._all = mask is not None and bool(mask.all())
        self._states = states

    def through(self, block: Any, last: bool) -> Callable[..., Any]:
        """The forward of an upper block, around what leaves."""
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
    cache = given.get("past_key_values")
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


class EarlyExitRows:
    """Which rows of a batch may leave at this step, all by one shortcut; counts in them which do."""

    def __init__(self, shortcut: Shortcut, threshold: float, rows: Sequence[EarlyExit | None]) -> None:
        self.shortcut, self.threshold = shortcut, threshold
        self._leaves = list(rows)
        self._rows: list[SequenceState] = []
        self._exit: EarlyExitHead | None = None

    def follow(self, rows: Sequence[SequenceState]) -> None:
        """Know the rows of the batch, whose prompts have been read."""
        self._rows = list(rows)

    def keep(self, slots: Sequence[int]) -> None:
        """Forget all rows but these: the others have left the batch."""
        self._leaves = [self._leaves[slot] for slot in slots]
        self._rows = [self._rows[slot] for slot in slots]

    def adapt(self, states: Tensor) -> Tensor:
        """See `EarlyExitHead.adapted`."""
        return self._as(states).adapted(states)

    def choose(self, states: Tensor) -> Tensor | None:
        """Of each row the last token fed, where the row thinks and the gate lets it go.

        Of a chunk, all but the last tokens stay: what was forced is read in full however it is fed. Rows that have
        ended or rest are fed for the others' sake; they stay as well, and count nowhere.
        """
        may = [
            one is not None and row.finish is None and row.pending is None and not row.queue and one.active()
            for one, row in zip(self._leaves, self._rows, strict=False)
        ]
        if not any(may):
            return None
        goes = (self._as(states).score(states[:, -1]) >= self.threshold).tolist()
        goes = [one and other for one, other in zip(may, goes, strict=True)]
        for one, allowed, gone in zip(self._leaves, may, goes, strict=True):
            if one is not None and allowed:
                one.left, one.stayed = one.left + gone, one.stayed + (not gone)
        if not any(goes):
            return None
        mask = torch.zeros(states.shape[:2], dtype=torch.bool)
        mask[:, -1] = torch.tensor(goes)
        return mask.to(states.device)

    def _as(self, states: Tensor) -> EarlyExitHead:
        if self._exit is None:
            self._exit = EarlyExitHead(self.shortcut, states)
        return self._exit


@contextmanager
def install_early_exit(model: Any, rows: Sequence[EarlyExit | None]) -> Iterator[list[EarlyExitRows]]:
    """**Changes the model** so that these rows leave early where they may, until the end of the `with`; see `leaving`.

    Yields one part of the batch for each shortcut in it; nothing is changed where there is none.
    """
    kinds = {(id(row.shortcut), row.threshold): row for row in rows if row is not None}
    parts = [
        EarlyExitRows(
            kind.shortcut,
            kind.threshold,
            [row if row is not None and (id(row.shortcut), row.threshold) == key else None for row in rows],
        )
        for key, kind in kinds.items()
    ]
    with ExitStack() as stack:
        for part in parts:
            stack.enter_context(early_exit(model, part.shortcut.layer, part.adapt, part.choose))
        yield parts
