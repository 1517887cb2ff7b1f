"""Confidence signals of logits: entropy, top probability, margin and log-sum-exp in one pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import OptionError
from .native import KINDS, library, share_rows, torch_only

_LEAST = -200.0  # its exp is zero in float32
_BLOCK = 128
_CHUNK = {"cpu": 1 << 18}  # elements per pass in plain torch: on a CPU, what fits into its L2 cache


@dataclass(frozen=True, slots=True)
class LogitSignals:
    """Signals of each row, float32 [rows]."""

    entropy: Tensor  # entropy of the distribution, in nats
    top: Tensor  # probability of the most likely token
    margin: Tensor  # `top` minus the second-highest probability; equal to `top` in a vocabulary of one
    log_total: Tensor  # log-sum-exp of the logits: the probability of token t is exp(logits[t] - log_total)


def logit_signals(logits: Tensor) -> LogitSignals:
    """Compute the signals of logits [rows, vocabulary] in float32, without gradients; raises OptionError.

    A logit of -inf is a probability of zero. For a row that contains NaN or +inf, or only -inf, all four are NaN.
    """
    if logits.ndim != 2 or not logits.shape[1] or logits.dtype not in KINDS:
        raise OptionError(
            f"logits are {logits.dtype} {list(logits.shape)}; accepted: float32, bfloat16 or float16 of "
            "[rows, vocabulary] with at least one token; reshape or convert them"
        )
    return LogitSignals(*_implementation(logits.device.type)(logits.detach()).unbind())


def reference(logits: Tensor) -> LogitSignals:
    """The definition of `logit_signals`, computed in float64."""
    log_probs = torch.log_softmax(logits.detach().double(), dim=-1)
    probs = log_probs.exp()
    top, second = F.pad(probs, (0, 1)).topk(2, dim=-1).values.unbind(dim=-1)
    log_total = logits.detach().double().amax(dim=-1) - log_probs.amax(dim=-1)
    entropy = torch.special.entr(probs).sum(dim=-1)
    return LogitSignals(entropy.float(), top.float(), (top - second).float(), log_total.float())


@cache
def _implementation(device: str) -> Callable[[Tensor], Tensor]:
    """The fastest function from logits to the four signals [4, rows] on a type of device."""
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
    """The signals [4, rows] in plain torch: few passes, over chunks that stay in the cache."""
    rows, columns = logits.shape
    out = torch.empty(4, rows, device=logits.device)
    at_a_time = max(1, _CHUNK.get(logits.device.type, 1 << 26) // columns)
    for start in range(0, rows, at_a_time):
        x = logits[start : start + at_a_time].float()
        probs = torch.softmax(x, dim=-1)
        total = probs.sum(dim=-1)  # a hundred times as exact as the sum inside softmax
        top, second = _two_highest(probs)
        log_sum = (total / top).log()
        highest = x.amax(dim=-1)
        below = (x - highest[:, None]).clamp_(min=_LEAST)  # zero times minus infinity would be NaN
        entropy = log_sum - below.mul_(probs).sum(dim=-1) / total
        signals = torch.stack((entropy, top / total, (top - second) / total, highest + log_sum))
        out[:, start : start + at_a_time] = signals
    return out


def _two_highest(probs: Tensor) -> tuple[Tensor, Tensor]:
    """The two highest values of each row. Maxima of blocks, then `topk` in one block: a tenth of the cost of `topk`."""
    blocks = F.pad(probs, (0, -probs.shape[1] % _BLOCK)).unflatten(-1, (-1, _BLOCK))
    tops = blocks.amax(dim=-1)
    top, at = tops.max(dim=-1, keepdim=True)
    inside = blocks.take_along_dim(at[:, :, None], dim=1).squeeze(1).topk(2, dim=-1).values[:, 1]
    return top.squeeze(1), torch.maximum(inside, tops.scatter(1, at, 0.0).amax(dim=-1))


def in_c(logits: Tensor, level: int | None = None) -> Tensor:
    """The signals [4, rows] from the native library; `level` chooses its vector instructions, for tests."""
    if logits.stride(1) != 1:
        logits = logits.contiguous()
    rows, columns = logits.shape
    stride, kind = logits.stride(0), KINDS[logits.dtype]
    native = library()
    assert native, "in_c needs the native library"
    level = native.tersely_level() if level is None else level
    out = torch.empty(4, rows)

    def work(start: int, stop: int) -> None:
        source = logits.data_ptr() + start * stride * logits.element_size()
        native.tersely_signals(source, kind, stop - start, columns, stride, out.data_ptr() + 4 * start, rows, level)

    share_rows(work, rows, columns)
    return out
