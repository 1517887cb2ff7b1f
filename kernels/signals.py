"""What a row of logits says about how sure the model is: entropy, top, margin and log-sum-exp in one pass."""

from __future__ import annotations

from collections.abc import Callable
from ctypes import c_int, c_int64, c_void_p
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import OptionError
from .native import KINDS, library, share_rows, torch_only

_LEAST = -200.0  # exp of it is zero in float32
_BLOCK = 128
_CHUNK = {"cpu": 1 << 18}  # elements that torch handles at a time: on a CPU, what its second cache takes


@dataclass(frozen=True, slots=True)
class LogitSignals:
    """Signals of each row, float32 [rows]."""

    entropy: Tensor
    """Of the whole distribution, in nats."""
    top: Tensor
    """Probability of the likeliest token."""
    margin: Tensor
    """`top` minus the second probability; equal to `top` in a vocabulary of one."""
    log_total: Tensor
    """Log-sum-exp of the logits: the probability of token t is exp(logits[t] - log_total)."""


def logit_signals(logits: Tensor) -> LogitSignals:
    """Signals of logits [rows, vocabulary], float32, bfloat16 or float16; computed in float32, without gradients.

    A logit of -inf is a chance of zero and adds nothing. A row that is -inf throughout, or holds NaN or +inf, has no
    distribution: all four are NaN. Raises OptionError for another shape or dtype, and for an empty vocabulary.
    """
    if logits.ndim != 2 or not logits.shape[1] or logits.dtype not in KINDS:
        raise OptionError(
            f"logits are {logits.dtype} {list(logits.shape)}; accepted: float32, bfloat16 or float16 of "
            "[rows, vocabulary] with at least one token; reshape or convert them"
        )
    return LogitSignals(*_implementation(logits.device.type)(logits.detach()).unbind())


def reference(logits: Tensor) -> LogitSignals:
    """The definition of `logit_signals`, worked out in float64."""
    log_chances = torch.log_softmax(logits.detach().double(), dim=-1)
    chances = log_chances.exp()
    top, second = F.pad(chances, (0, 1)).topk(2, dim=-1).values.unbind(dim=-1)
    log_total = logits.detach().double().amax(dim=-1) - log_chances.amax(dim=-1)
    entropy = torch.special.entr(chances).sum(dim=-1)
    return LogitSignals(entropy.float(), top.float(), (top - second).float(), log_total.float())


@cache
def _implementation(device: str) -> Callable[[Tensor], Tensor]:
    """A function from logits to the four signals [4, rows], for tensors on a kind of device."""
    if device == "cpu" and library():
        return in_c
    if device == "cuda" and not torch_only():
        try:
            from .signals_triton import in_triton
        except ImportError:
            return in_torch
        return in_triton
    return in_torch


def in_torch(logits: Tensor) -> Tensor:
    """The signals [4, rows] where nothing compiled is at hand: few passes, over what stays in the cache."""
    rows, columns = logits.shape
    out = torch.empty(4, rows, device=logits.device)
    at_a_time = max(1, _CHUNK.get(logits.device.type, 1 << 26) // columns)
    for start in range(0, rows, at_a_time):
        x = logits[start : start + at_a_time].float()
        chances = torch.softmax(x, dim=-1)
        total = chances.sum(dim=-1)  # softmax adds up a hundred times less exactly than this
        top, second = _two_highest(chances)
        log_sum = (total / top).log()
        highest = x.amax(dim=-1)
        below = (x - highest[:, None]).clamp_(min=_LEAST)  # zero times minus infinity would be NaN
        entropy = log_sum - below.mul_(chances).sum(dim=-1) / total
        signals = torch.stack((entropy, top / total, (top - second) / total, highest + log_sum))
        out[:, start : start + at_a_time] = signals
    return out


def _two_highest(chances: Tensor) -> tuple[Tensor, Tensor]:
    """The two highest of each row: maxima of blocks and a look into one block cost a tenth of `topk`."""
    blocks = F.pad(chances, (0, -chances.shape[1] % _BLOCK)).unflatten(-1, (-1, _BLOCK))
    tops = blocks.amax(dim=-1)
    top, at = tops.max(dim=-1, keepdim=True)
    inside = blocks.take_along_dim(at[:, :, None], dim=1).squeeze(1).topk(2, dim=-1).values[:, 1]
    return top.squeeze(1), torch.maximum(inside, tops.scatter(1, at, 0.0).amax(dim=-1))


def in_c(logits: Tensor, level: int | None = None) -> Tensor:
    """The signals [4, rows] from the native library, with its best vectors or those of a lower level (for tests)."""
    if logits.stride(1) != 1:
        logits = logits.contiguous()
    rows, columns = logits.shape
    stride, kind = logits.stride(0), KINDS[logits.dtype]
    function, best = _native()
    level = best if level is None else level
    out = torch.empty(4, rows)

    def work(start: int, stop: int) -> None:
        source = logits.data_ptr() + start * stride * logits.element_size()
        function(source, kind, stop - start, columns, stride, out.data_ptr() + 4 * start, rows, level)

    share_rows(work, rows, columns)
    return out


@cache
def _native() -> tuple[Any, int]:
    """The function of the library, and its best level here."""
    found = library()
    assert found, "in_c is only for machines with the native library"
    function = found.tersely_signals
    function.argtypes = (c_void_p, c_int, c_int64, c_int64, c_int64, c_void_p, c_int64, c_int)
    function.restype = None
    return function, found.tersely_level()
