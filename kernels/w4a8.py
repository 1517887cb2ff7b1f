"""Linear layers with 8-bit activations and dual-grained 4-bit weights (W4A8), or 8-bit weights for heads (W8A8).

The weight of output n and input k is channel_scale[n] * fine[n, g] * (code[n, k] - zero[n, g]), where g is the group of
input k; fine * (code - zero) fits into 8 bits (DGQ, arXiv:2310.04836). Activations are quantized dynamically, one scale
per row. A group's integer products are summed first and scaled afterwards (MixPE, arXiv:2411.16158), so every
implementation gives the same result.

8-bit weights may be stored in planes: the high halves are read for all outputs, and the low halves only for tiles whose
preview, computed from the high halves, comes close to the row's maximum. So a head reads about as many bytes as with 4
bits, but every token at least e^-10 times as likely as the best gets its 8-bit logit. SVD-softmax (arXiv:2311.10302)
does the same with a low-rank preview.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import OptionError
from .native import KINDS, library, register_w4a8
from .w4a8_layout import TILE, LayerTensors, PackedLayout, check_layer, choose_layout, preview, split_layers, unpack

X_LEAST = 2.0**-100  # a row of activations whose maximum is below this counts as zeros
MARGIN = 10.0  # in planes: a tile is refined if its preview is at most this far below the row's maximum
_EXACT = 512  # inputs whose products a float32 can sum without rounding: 241 * 127 * 512 < 2^24


def w4a8_linear(
    x: Tensor,  # [..., inputs] in float32, bfloat16 or float16
    weight: Tensor,  # packed, see w4a8_layout.py
    groups: Tensor | None,  # fine scales and zeros; None for 8-bit weights, in planes if `weight` has 4 dimensions
    channel_scale: Tensor,  # float32 [outputs]
    input_scale: Tensor | None = None,  # float32 [inputs], multiplied with x
    bias: Tensor | None = None,  # [outputs], including those of the second layer
    second_weight: Tensor | None = None,  # 8-bit weights of a second layer on the same inputs
    second_scale: Tensor | None = None,  # its channel_scale
) -> Tensor:
    """Apply the layer, [..., outputs] in the dtype of x. Without gradients; a row with NaN or infinity gives NaN.

    Raises OptionError for shapes, dtypes or devices that do not fit.
    """
    tensors = weight, groups, channel_scale, input_scale, bias, second_weight, second_scale
    try:
        if torch.is_inference_mode_enabled():
            return w4a8_op(x, *tensors)  # type: ignore[no-any-return]
        with torch._C._AutoDispatchBelowAutograd():
            return w4a8_op(x, *tensors)  # type: ignore[no-any-return]
    except RuntimeError:
        _checked_layers(x, *tensors)  # raises a better error than the compiled code
        raise


def _checked_layers(x: Tensor, *tensors: Any) -> list[LayerTensors]:
    """The layers of the arguments of `w4a8_linear`; raises OptionError if they do not fit x or each other."""
    if x.dtype not in KINDS or not x.ndim:
        raise OptionError(
            f"activations are {x.dtype} {list(x.shape)}; accepted: float32, bfloat16 or float16 of [..., inputs]"
        )
    devices = {tensor.device for tensor in (x, *tensors) if tensor is not None}
    if len(devices) > 1:
        raise OptionError(f"tensors are on {', '.join(sorted(map(str, devices)))}; accepted: all on one device")
    layers = split_layers(*tensors)
    for layer in layers:
        check_layer(x.shape[-1], *layer)
    return layers


def reference(
    x: Tensor,
    weight: Tensor,
    groups: Tensor | None,
    channel_scale: Tensor,
    input_scale: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """The definition of `w4a8_linear` on rows, computed in float64: float64 [rows, outputs]."""
    x8, row_scale = quantize_rows(x, input_scale)
    offset = torch.zeros_like(channel_scale).double() if bias is None else bias.double()

    def multiply(integers: Tensor) -> Tensor:
        integers = integers[: channel_scale.shape[0], : x.shape[1]].double()
        return (x8.double() @ integers.T) * channel_scale.double() * row_scale.double()[:, None] + offset

    out = multiply(unpack(weight, groups))
    if choose_layout(weight, groups) is not PackedLayout.PLANES:
        return out
    return select_refined(multiply(preview(weight) / 2), out, channel_scale)


def select_refined(previewed: Tensor, refined: Tensor, channel_scale: Tensor) -> Tensor:
    """Results [rows, outputs] in planes, refined in tiles of outputs (with a scale) that come close to the maximum."""
    counted = previewed.where(channel_scale != 0, -torch.inf).nan_to_num(-torch.inf, torch.inf, -torch.inf)
    tops = F.pad(counted, (0, -refined.shape[1] % TILE), value=-torch.inf).unflatten(1, (-1, TILE)).amax(2)
    best = tops.amax(1, keepdim=True)
    high = (tops >= best - MARGIN) & (best > -torch.inf)
    return torch.where(high.repeat_interleave(TILE, 1)[:, : refined.shape[1]], refined, previewed)


def quantize_rows(x: Tensor, input_scale: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Quantize activations to int8 [rows, inputs] with one scale per row, float32 [rows]."""
    x = x.float() if input_scale is None else x.float() * input_scale
    most = x.abs().amax(dim=-1) if x.shape[1] else x.new_zeros(len(x))
    usable = (most >= X_LEAST) & (most < torch.inf)
    inverse = torch.where(usable, torch.full_like(most, 127.0) / most, 0.0)  # `127 / most` would round twice
    x8 = (x * inverse[:, None]).where(usable[:, None], 0.0).round().to(torch.int8)
    row_scale = torch.where(usable, most / 127.0, torch.where(most < X_LEAST, 0.0, torch.nan))
    return x8, row_scale


@torch.no_grad()
def in_torch(x: Tensor, *tensors: Any) -> Tensor:
    """The layer in plain torch. Works on a few tiles at a time, so only few weights are unpacked at once."""
    layers = _checked_layers(x, *tensors)
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
    out, previewed = (torch.empty(rows if used else 0, outputs, device=x.device) for used in (True, planes))

    def fill(to: Tensor, integers: Tensor, unit: float, first: int) -> None:
        total = _integer_matmul(x8, integers[: outputs - first])
        n = slice(first, first + total.shape[1])
        to[:, n] = total.float() * unit * channel_scale[n] * row_scale[:, None]
        if bias is not None:
            to[:, n] += bias[n].float()

    for tile in range(0, weight.shape[-3], 16):
        part = weight[..., tile : tile + 16, :, :]
        fill(out, unpack(part, None if groups is None else groups[tile : tile + 16]), 1.0, tile * TILE)
        if planes:
            fill(previewed, preview(part), 0.5, tile * TILE)
    return (select_refined(previewed, out, channel_scale) if planes else out).to(x.dtype)


def _integer_matmul(x8: Tensor, integers: Tensor) -> Tensor:
    """The product of two integer matrices, int32 [rows, outputs]."""
    total = x8.new_zeros(len(x8), len(integers), dtype=torch.int32)
    for start in range(0, x8.shape[1], _EXACT):
        k = slice(start, min(start + _EXACT, x8.shape[1]))
        total += (x8[:, k].float() @ integers[:, k].float().T).to(torch.int32)
    return total


def _no_gradient(*_: object) -> None:
    raise NotImplementedError("tersely::w4a8_linear has no gradient; use the module W4A8Linear, which has one")


_NAME = "tersely::w4a8_linear"
library()  # so that an invalid environment variable is reported before the op is half registered
# Not a `custom_op`, which is slower to call and adds checks that this op does not need.
torch.library.define(_NAME, str(torch.library.infer_schema(w4a8_linear, mutates_args=())))
torch.library.impl(_NAME, "default", in_torch)
_COMPILED = register_w4a8(MARGIN)
torch.library.register_autograd(_NAME, _no_gradient)
w4a8_op = torch.ops.tersely.w4a8_linear.default
"""`w4a8_linear` as a torch op, for tracing and compiling: one node in a graph. Its error messages are less precise."""


def compiled() -> bool:
    """Whether compiled code computes these layers on CPUs."""
    return _COMPILED


@torch.library.register_fake(_NAME)
def _(x: Tensor, *tensors: Any) -> Tensor:
    layers = _checked_layers(x, *tensors)
    return x.new_empty(*x.shape[:-1], sum(layer[2].shape[0] for layer in layers))
