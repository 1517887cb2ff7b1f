"""The pass of `signals.py` as a Triton kernel: one program per row, an online softmax with a running maximum."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 4096


@triton.jit(do_not_specialize=["rows"])  # type: ignore[untyped-decorator]
def _pass(logits, out, rows, columns, stride, block: tl.constexpr):  # type: ignore[no-untyped-def]
    """Track the two highest logits of each lane, the sum of exp(x - top), and that sum weighted by x - top."""
    row = tl.program_id(0)
    lanes = tl.arange(0, block)
    first = tl.full([block], float("-inf"), tl.float32)
    second = tl.full([block], float("-inf"), tl.float32)
    # Not -inf: -inf - -inf would be NaN.
    top = tl.full([], -3.4028234663852886e38, tl.float32)
    total = tl.full([], 0.0, tl.float32)
    weighted = tl.full([], 0.0, tl.float32)
    start = logits + row.to(tl.int64) * stride
    for at in range(0, columns, block):
        # To float32 before any arithmetic: Triton's interpreter would compute with the bits of a bfloat16.
        x = tl.load(start + at + lanes, mask=at + lanes < columns, other=float("-inf")).to(tl.float32)
        second = tl.maximum(second, tl.minimum(first, x))
        first = tl.maximum(first, x)
        higher = tl.maximum(top, tl.max(x, 0))
        # exp(-200) is zero, and zero times minus infinity would be NaN.
        down = tl.maximum(top - higher, -200.0)
        scale = tl.exp(down)
        probs = tl.exp(x - higher)
        weighted = scale * (weighted + down * total) + tl.sum(probs * tl.maximum(x - higher, -200.0), 0)
        total = scale * total + tl.sum(probs, 0)
        top = higher
    winner = tl.argmax(first, 0)
    runner_up = tl.max(tl.where(lanes == winner, second, first), 0)
    # NaN if the row has only -inf, or any NaN or +inf.
    invalid = tl.where(total > 0, 0.0, float("nan"))
    log_total = tl.log(total)
    tl.store(out + row, log_total - weighted / total + invalid)
    tl.store(out + rows + row, 1.0 / total + invalid)
    tl.store(out + 2 * rows + row, (1.0 - tl.exp(runner_up - top)) / total + invalid)
    tl.store(out + 3 * rows + row, top + log_total + invalid)


def in_triton(logits: Tensor) -> Tensor:
    """The signals [4, rows] on a GPU, or in Triton's interpreter."""
    if logits.stride(1) != 1:
        logits = logits.contiguous()
    rows, columns = logits.shape
    out = torch.empty(4, rows, device=logits.device)
    if rows:
        block = min(_BLOCK, triton.next_power_of_2(columns))
        with torch.cuda.device_of(logits):
            _pass[(rows,)](logits, out, rows, columns, logits.stride(0), block=block, num_warps=8)
    return out
