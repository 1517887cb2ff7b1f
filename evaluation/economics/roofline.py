"""The roofline of a model on a device: which of compute and memory bounds prefill and decoding, and tokens/s at most.

Counted are weights and key-value cache; activations, launches and communication come on top, so nothing that
decodes a token a step runs faster. Prefill reads `context` tokens a sequence, decoding is one step at that length.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ...errors import unknown
from .devices import Device
from .flops import prefill_flops, token_flops
from .model_shape import ModelShape


@dataclass(frozen=True, slots=True)
class Storage:
    """How weights are kept and what they are computed in."""

    bytes: float
    compute: str


STORAGE: Mapping[str, Storage] = {
    "float32": Storage(4, "float32"),
    "bfloat16": Storage(2, "bfloat16"),
    "float16": Storage(2, "float16"),
    "int8": Storage(1, "bfloat16"),
    # Groups of 128 with a scale and a zero point of 16 bits each: 4.25 bits a weight.
    "int4": Storage(4.25 / 8, "bfloat16"),
}
"""The dtypes of weights; those of integers are computed in 16 bits, and all weights have them, the head included."""


@dataclass(frozen=True, slots=True)
class Phase:
    """One phase at its bound; `tokens_per_second` is of the whole batch."""

    flops: float
    bytes: float
    seconds: float
    bound: str
    tokens_per_second: float

    @property
    def intensity(self) -> float:
        """FLOPs per byte."""
        return self.flops / self.bytes


@dataclass(frozen=True, slots=True)
class Roofline:
    """Both phases, what they need of memory, and where the bound changes.

    ridge_batch: the batch from which on the weights' part of decoding is bound by compute, whatever the context.
    """

    prefill: Phase
    decode: Phase
    weight_bytes: float
    cache_bytes: float
    ridge_batch: float
    fits: bool | None

    def as_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return asdict(self)


def read_storage(dtype: str) -> Storage:
    """How weights of a dtype are kept; raises OptionError for an unknown one."""
    if dtype not in STORAGE:
        raise unknown("dtype", dtype, STORAGE)
    return STORAGE[dtype]


def cache_bytes(shape: ModelShape, dtype: str, batch: int, context: int) -> float:
    """Bytes of the key-value cache, kept in what is computed in: prefill writes them, a decoding step reads them."""
    return batch * shape.cached_values(context) * STORAGE[read_storage(dtype).compute].bytes


def moved_bytes(shape: ModelShape, dtype: str, batch: int, context: int) -> float:
    """Bytes that a phase moves at least: the weights it multiplies with, once for the whole batch, and the cache."""
    return shape.read * read_storage(dtype).bytes + cache_bytes(shape, dtype, batch, context)


def bounds(shape: ModelShape, device: Device, dtype: str, batch: int, context: int) -> Roofline:
    """The bounds of a batch of sequences of one length."""
    kept = read_storage(dtype)
    peak, moved = device.peak(kept.compute), moved_bytes(shape, dtype, batch, context)
    stored, cache = shape.parameters * kept.bytes, cache_bytes(shape, dtype, batch, context)
    balance = peak / device.bandwidth

    def phase(flops: float, tokens: int) -> Phase:
        seconds = max(flops / peak, moved / device.bandwidth)
        return Phase(flops, moved, seconds, "compute" if flops / moved > balance else "memory", tokens / seconds)

    return Roofline(
        prefill=phase(batch * prefill_flops(shape, context), batch * context),
        decode=phase(batch * token_flops(shape, context), batch),
        weight_bytes=stored,
        cache_bytes=cache,
        ridge_batch=balance * shape.read * kept.bytes / (2.0 * (shape.blocks + shape.head)),
        fits=None if device.memory is None else stored + cache <= device.memory,
    )
