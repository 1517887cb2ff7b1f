"""Linear layers of 4-bit weights in two grains times 8-bit activations, and of 8-bit weights for heads.

The weight of output n and input k is channel_scale[n] * fine[n, g] * (code[n, k] - zero[n, g]), g the group of inputs
that k lies in: whole numbers of which fine * (code - zero) fits into 8 bits, and one number in floating point an output
(DGQ, arXiv:2310.04836). Activations are scaled per row, by their highest, at the time. So nothing but integers is
multiplied and added up, and every implementation comes to the same sums. The order is that of MixPE (arXiv:2411.16158):
a scale waits until the products of its group are added up.

Of 8-bit weights in planes, the high halves are read for all outputs, and the low ones only for those tiles of outputs
that come near a row's highest by their high halves. So a head costs the bytes of 4 bits, and what a model may well say
next has 8; what is, by 4, less than e^-10 times as likely as the best keeps the logit of 4. The idea is that of
SVD-softmax (arXiv:2311.10302), whose preview is of low rank.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import OptionError
from .native import KINDS, library
from .w4a8_layout import TILE, PackedLayout, Tensors, check, choose_layout, interleave, preview, unpack
from .w4a8_native import register

X_LEAST = 2.0**-100
"""Rows of activations that stay below this count as zeros."""
MARGIN = 10.0
"""In planes, how far below a row's highest that of a tile may be, both by high halves, for low halves to be read."""
_EXACT = 512  # inputs whose products a float32 adds up without rounding: 241 * 127 * 512 < 2^24


def w4a8_linear(
    x: Tensor,
    weight: Tensor,
    groups: Tensor | None,
    channel_scale: Tensor,
    input_scale: Tensor | None = None,
    bias: Tensor | None = None,
    beside: Tensor | None = None,
    beside_scale: Tensor | None = None,
) -> Tensor:
    """The layer on x [..., inputs], float32, bfloat16 or float16; gives [..., outputs] of the same dtype.

    weight, groups: see w4a8_layout.py; groups None: 8-bit weights, of 4 dimensions in planes. channel_scale: float32
    [outputs]. input_scale: float32 [inputs], what activations are multiplied by before they are quantized. bias:
    [outputs]. beside, beside_scale: weight and channel_scale of a layer of 8-bit weights on the same inputs, whose
    outputs follow; the bias is that of both then. A row with NaN or infinity gives NaN. Without gradients. Raises
    OptionError for shapes and dtypes that do not fit.
    """
    tensors = weight, groups, channel_scale, input_scale, bias, beside, beside_scale
    try:
        if torch.is_inference_mode_enabled():
            return w4a8_op(x, *tensors)  # type: ignore[no-any-return]
        with torch._C._AutoDispatchBelowAutograd():
            return w4a8_op(x, *tensors)  # type: ignore[no-any-return]
    except RuntimeError:
        _layers(x, *tensors)  # compiled code does not say what is wrong
        raise


Given = tuple[Tensor, Tensor | None, Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None]
"""What `w4a8_linear` takes beside x, in order."""


def _layers(x: Tensor, *given: *Given) -> list[Tensors]:
    """The layer, and the one beside it if any; raises OptionError unless they fit x and each other."""
    if x.dtype not in KINDS or not x.ndim:
        raise OptionError(
            f"activations are {x.dtype} {list(x.shape)}; accepted: float32, bfloat16 or float16 of [..., inputs]"
        )
    devices = {tensor.device for tensor in (x, *given) if tensor is not None}
    if len(devices) > 1:
        raise OptionError(f"tensors are on {', '.join(sorted(map(str, devices)))}; accepted: all on one device")
    found = interleave(given[:5], *given[5:])
    for one in found:
        check(x.shape[-1], *one)
    return found


def reference(
    x: Tensor,
    weight: Tensor,
    groups: Tensor | None,
    channel_scale: Tensor,
    input_scale: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """The definition of `w4a8_linear` on rows, worked out in float64: float64 [rows, outputs]."""
    x8, row_scale = quantize_rows(x, input_scale)
    added = torch.zeros_like(channel_scale).double() if bias is None else bias.double()

    def worked_out(whole: Tensor) -> Tensor:
        whole = whole[: channel_scale.shape[0], : x.shape[1]].double()
        return (x8.double() @ whole.T) * channel_scale.double() * row_scale.double()[:, None] + added

    out = worked_out(unpack(weight, groups))
    if choose_layout(weight, groups) is not PackedLayout.PLANES:
        return out
    return refined(worked_out(preview(weight) / 2), out, channel_scale)


def refined(seen: Tensor, out: Tensor, channel_scale: Tensor) -> Tensor:
    """Results [rows, outputs] in planes: `out` in tiles that come near a row's highest by high halves, else `seen`.

    Outputs of scale 0, such as those that fill up a vocabulary, have nothing to refine, and do not count as high.
    """
    counted = seen.where(channel_scale != 0, -torch.inf).nan_to_num(-torch.inf, torch.inf, -torch.inf)
    tops = F.pad(counted, (0, -out.shape[1] % TILE), value=-torch.inf).unflatten(1, (-1, TILE)).amax(2)
    best = tops.amax(1, keepdim=True)
    high = (tops >= best - MARGIN) & (best > -torch.inf)
    return torch.where(high.repeat_interleave(TILE, 1)[:, : out.shape[1]], out, seen)


def quantize_rows(x: Tensor, input_scale: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """8-bit activations int8 [rows, inputs], and what a unit of each row is worth, float32 [rows]."""
    x = x.float() if input_scale is None else x.float() * input_scale
    most = x.abs().amax(dim=-1) if x.shape[1] else x.new_zeros(len(x))
    usable = (most >= X_LEAST) & (most < torch.inf)
    inverse = torch.where(usable, torch.full_like(most, 127.0) / most, 0.0)  # `127 / most` would round twice
    x8 = (x * inverse[:, None]).where(usable[:, None], 0.0).round().to(torch.int8)
    row_scale = torch.where(usable, most / 127.0, torch.where(most < X_LEAST, 0.0, torch.nan))
    return x8, row_scale


@torch.no_grad()
def in_torch(
    x: Tensor,
    weight: Tensor,
    groups: Tensor | None,
    channel_scale: Tensor,
    input_scale: Tensor | None = None,
    bias: Tensor | None = None,
    beside: Tensor | None = None,
    beside_scale: Tensor | None = None,
) -> Tensor:
    """The layer where nothing compiled is at hand: some tiles at a time, so that few weights are ever unpacked."""
    layers = _layers(x, weight, groups, channel_scale, input_scale, bias, beside, beside_scale)
    with torch.autocast(x.device.type, enabled=False):
        out = torch.cat([_one_in_torch(x.reshape(-1, x.shape[-1]), *layer) for layer in layers], dim=1)
    return out.reshape(*x.shape[:-1], out.shape[1])


def _one_in_torch(
    x: Tensor,
    weight: Tensor,
    groups: Tensor | None,
    channel_scale: Tensor,
    input_scale: Tensor | None,
    bias: Tensor | None,
) -> Tensor:
    x8, row_scale = quantize_rows(x, input_scale)
    rows, outputs = len(x), channel_scale.shape[0]
    planes = choose_layout(weight, groups) is PackedLayout.PLANES
    out, seen = (torch.empty(rows if used else 0, outputs, device=x.device) for used in (True, planes))

    def fill(to: Tensor, whole: Tensor, unit: float, first: int) -> None:
        total = _totals(x8, whole[: outputs - first])
        n = slice(first, first + total.shape[1])
        to[:, n] = total.float() * unit * channel_scale[n] * row_scale[:, None]
        if bias is not None:
            to[:, n] += bias[n].float()

    for tile in range(0, weight.shape[-3], 16):
        some = weight[..., tile : tile + 16, :, :]
        fill(out, unpack(some, None if groups is None else groups[tile : tile + 16]), 1.0, tile * TILE)
        if planes:
            fill(seen, preview(some), 0.5, tile * TILE)
    return (refined(seen, out, channel_scale) if planes else out).to(x.dtype)


def _totals(x8: Tensor, whole: Tensor) -> Tensor:
    """Sums of the products of whole numbers, int32 [rows, outputs]."""
    total = x8.new_zeros(len(x8), len(whole), dtype=torch.int32)
    for start in range(0, x8.shape[1], _EXACT):
        k = slice(start, min(start + _EXACT, x8.shape[1]))
        total += (x8[:, k].float() @ whole[:, k].float().T).to(torch.int32)
    return total


def _no_gradient(*_: object) -> None:
    raise NotImplementedError("tersely::w4a8_linear has no gradient; W4A8Linear passes one through")


_NAME = "tersely::w4a8_linear"
library()  # or what is wrong with the environment would be said when the op is there by half
# Not as a `custom_op`, which takes longer to call: this has no gradients, changes no input and gives none back.
torch.library.define(_NAME, str(torch.library.infer_schema(w4a8_linear, mutates_args=())))
torch.library.impl(_NAME, "default", in_torch)
_COMPILED = register(MARGIN)
torch.library.register_autograd(_NAME, _no_gradient)
w4a8_op = torch.ops.tersely.w4a8_linear.default
"""`w4a8_linear` for what traces or compiles models: one node of a graph. Says less about tensors that do not fit."""


def compiled() -> bool:
    """Whether it is compiled code that works out these layers on CPUs."""
    return _COMPILED


@torch.library.register_fake(_NAME)
def _(
    x: Tensor,
    weight: Tensor,
    groups: Tensor | None,
    channel_scale: Tensor,
    input_scale: Tensor | None = None,
    bias: Tensor | None = None,
    beside: Tensor | None = None,
    beside_scale: Tensor | None = None,
) -> Tensor:
    layers = _layers(x, weight, groups, channel_scale, input_scale, bias, beside, beside_scale)
    return x.new_empty(*x.shape[:-1], sum(layer[2].shape[0] for layer in layers))
