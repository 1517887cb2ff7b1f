"""Matrix products of 1- to 8-bit integers, any width on either side, using only `xor` and `popcount`.

A p-bit code represents 2 * code - (2^p - 1): each bit i contributes +2^i or -2^i, never zero, so odd widths cost no
more than their bits (bipolar-INT, arXiv:2409.17870; APT-LLM, arXiv:2508.19087). The dot product of two sign vectors of
length K is K - 2 * popcount(a xor b). A product of p-bit and q-bit codes is the sum of p * q of these; the one of bits
i and j has the weight 2^(i + j). All arithmetic is in integers, so all implementations agree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import OptionError
from ..native import library, share_rows

BITS = (1, 2, 3, 4, 5, 6, 7, 8)
LINE = 512  # lines of a plane are padded to a multiple of this many bits


@dataclass(frozen=True, slots=True)
class BitPlanes:
    """Rows of codes as bit planes. Raises OptionError for a tensor that does not fit."""

    words: Tensor
    """int64 [rows, bits, words], zero-padded to whole lines of 8 words. Bit k % 64 of word k / 64 of plane i is bit i
    of code k."""
    inputs: int

    def __post_init__(self) -> None:
        words = self.words
        fits = words.ndim == 3 and words.dtype == torch.int64 and words.is_contiguous() and words.shape[1] in BITS
        if not fits or self.inputs < 1 or words.shape[2] != -(-self.inputs // LINE) * LINE // 64:
            raise OptionError(
                f"planes of {self.inputs} inputs got words {words.dtype} {list(words.shape)}; accepted: the contiguous "
                "output of `pack`, with at least one input"
            )

    @property
    def bits(self) -> int:
        return self.words.shape[1]


def pack(codes: Tensor, bits: int) -> BitPlanes:
    """Pack integer codes 0..2^bits - 1 [rows, inputs]; raises OptionError for other codes, widths or shapes."""
    check_codes(codes, bits, BITS)
    inputs = codes.shape[1]
    bit_of = F.pad(codes.long(), (0, -inputs % LINE)).unflatten(1, (-1, 64))
    shifts = torch.arange(64, device=codes.device)
    words = [((bit_of >> i & 1) << shifts).sum(dim=-1) for i in range(bits)]  # each bit once, so nothing is carried
    return BitPlanes(torch.stack(words, dim=1), inputs)


def unpack(planes: BitPlanes) -> Tensor:
    """The integers that the codes represent, int16 [rows, inputs]."""
    shifts = torch.arange(64, device=planes.words.device)
    signs = 2 * (planes.words[..., None] >> shifts & 1).flatten(2)[..., : planes.inputs] - 1  # [rows, bits, inputs]
    weights = 1 << torch.arange(planes.bits, device=planes.words.device)
    return (signs * weights[:, None]).sum(dim=1).to(torch.int16)


def check_codes(codes: Tensor, bits: int, accepted: Sequence[int]) -> None:
    """Raise OptionError unless these are integers 0..2^bits - 1 [rows, inputs], of an accepted width."""
    if bits not in accepted:
        raise OptionError(f"codes of {bits} bits; accepted: {accepted[0]} to {accepted[-1]}")
    if codes.ndim != 2 or codes.is_floating_point() or codes.is_complex() or not codes.shape[1]:
        raise OptionError(f"codes are {codes.dtype} {list(codes.shape)}; accepted: integers [rows, inputs]")
    low, high = (int(codes.min()), int(codes.max())) if codes.numel() else (0, 0)
    if low < 0 or high >= 1 << bits:
        raise OptionError(f"{bits}-bit codes range from {low} to {high}; accepted: 0 to {(1 << bits) - 1}")


def bit_plane_linear(codes: Tensor, bits: int, weight: BitPlanes) -> Tensor:
    """Multiply the integers that activation codes, uint8 [..., inputs] of 0..2^bits - 1, and weight codes represent.

    Returns int32 [..., outputs]. Raises OptionError if codes do not fit, or sums could overflow 32 bits: with 8 by 8
    bits above 33,025 inputs, and with each bit less on one side about twice as many.
    """
    if bits not in BITS:
        raise OptionError(f"codes of {bits} bits; accepted: {BITS[0]} to {BITS[-1]}")
    inputs, device = weight.inputs, weight.words.device
    if codes.dtype != torch.uint8 or not codes.ndim or codes.shape[-1] != inputs or codes.device != device:
        raise OptionError(
            f"activations are {codes.dtype} {list(codes.shape)} on {codes.device}; accepted: uint8 [..., {inputs}] on "
            f"{device}, the device of the weights"
        )
    most = ((1 << 31) - 1) // (((1 << bits) - 1) * ((1 << weight.bits) - 1))
    if inputs > most:
        raise OptionError(f"{inputs} inputs of {bits} by {weight.bits} bits; accepted: at most {most}")
    multiply = in_c if device.type == "cpu" and library() else reference
    out = multiply(codes.reshape(-1, inputs), bits, weight)
    return out.reshape(*codes.shape[:-1], len(weight.words))


def reference(codes: Tensor, bits: int, weight: BitPlanes) -> Tensor:
    """The definition of `bit_plane_linear` on rows, and its implementation without C; exact in float64."""
    check_codes(codes, bits, BITS)
    values = 2 * codes.double() - ((1 << bits) - 1)
    return (values @ unpack(weight).double().T).to(torch.int32)


def in_c(codes: Tensor, bits: int, weight: BitPlanes, level: int | None = None) -> Tensor:
    """The product from the native library; `level` chooses its vector instructions, for tests."""
    codes = codes if codes.stride(1) == 1 else codes.contiguous()
    native = library()
    assert native, "in_c needs the native library"
    (rows, inputs), (outputs, _, words) = codes.shape, weight.words.shape
    planes = torch.empty(rows, bits, words, dtype=torch.int64)
    out = torch.empty(rows, outputs, dtype=torch.int32)
    seen = native.tersely_planes_pack(codes.data_ptr(), rows, inputs, codes.stride(0), bits, planes.data_ptr(), words)
    if seen >> bits:
        check_codes(codes, bits, BITS)
    left, right = (planes.data_ptr(), rows, bits), (weight.words.data_ptr(), outputs, weight.bits)
    arguments = (*left, *right, words, inputs, out.data_ptr())
    level = native.tersely_planes_level() if level is None else level
    share_rows(lambda start, stop: native.tersely_planes_rows(*arguments, start, stop, level), outputs, rows * inputs)
    return out
