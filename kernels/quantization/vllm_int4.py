"""Int4 checkpoints of other methods in vLLM on our kernel, where TERSELY_INT4_KERNEL=1 asks for it.

Layers of 4-bit weights of GPTQ, AWQ, compressed-tensors and Quark all come to vLLM's choice of a kernel, in whose list
ours is then the first. What it cannot take it leaves to the next in the list, and says so in the log. Its numbers are
not those of vLLM's own: activations are rounded to 8 bits, and group scales as `int4.py` says.
"""

from __future__ import annotations

import os

import torch
from torch import Tensor
from vllm.logger import init_logger
from vllm.model_executor.kernels.linear import (
    _POSSIBLE_KERNELS,
    MPLinearKernel,
    MPLinearLayerConfig,
    register_linear_kernel,
)
from vllm.platforms import PlatformEnum, current_platform
from vllm.scalar_type import scalar_types

from ...errors import unknown
from ..huge_pages import to_huge_pages
from ..native import KINDS
from ..w4a8 import compiled, w4a8_op
from ..w4a8_layout import DEEPEST, TILE
from .int4 import SWITCH, kernel_size, repack, unpack_words

ALARMING = 0.1
"""Error of a layer's weights, as a share of them, that is worth a warning: about what 4 bits cost by themselves."""
_DISABLED = "VLLM_DISABLED_KERNELS"
_MARK = "tersely-int4"
_log = init_logger("vllm.tersely")  # vLLM shows what is logged below its own name


class TerselyInt4LinearKernel(MPLinearKernel):
    """A layer of int4 weights, of any of the methods, on the W4A8 kernel."""

    @classmethod
    def get_min_capability(cls) -> int:
        """See vLLM; -1: no GPU is needed."""
        return -1

    @classmethod
    def can_implement(cls, c: MPLinearLayerConfig) -> tuple[bool, str | None]:
        """Whether the layer can be taken, and why not."""
        reason = _refusal(c)
        if reason:
            shape = tuple(c.partition_weight_shape)
            _log.warning_once("%s: a layer of (inputs, outputs) %s is left to vLLM: %s", SWITCH, shape, reason)
        else:
            _log.info_once("%s: int4 layers get 8-bit activations and rounded group scales", SWITCH)
        return reason is None, reason

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        """Put our tensors in the place of the checkpoint's: the weights', the scales', and `tersely_groups`."""
        words, scale, packed_zero = self._get_weight_params(layer)
        by_output = words.data if words.input_dim == 1 else words.data.t()
        scale = scale.data if scale.output_dim == 0 else scale.data.t()
        if self.config.zero_points:
            by_group = packed_zero.data.t() if packed_zero.output_dim == 0 else packed_zero.data
            zero = unpack_words(by_group).t()[: len(by_output)]
        else:
            zero = torch.full(scale.shape, self.config.weight_type.bias, dtype=torch.uint8)
        made = repack(by_output, scale, zero, self.config.group_size)
        if made.error > ALARMING:
            name = getattr(layer, "prefix", "") or "a layer"
            _log.warning("%s: rounded group scales change the weights of %s by %.0f %%", SWITCH, name, 100 * made.error)
        if self.w_zp_name:
            layer._parameters.pop(self.w_zp_name, None)
        for parameter, value in (
            (self.w_q_name, made.weight),
            (self.w_s_name, made.channel_scale),
            ("tersely_groups", made.groups),
        ):
            layer.register_parameter(parameter, torch.nn.Parameter(to_huge_pages(value), requires_grad=False))

    def apply_weights(self, layer: torch.nn.Module, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """[..., inputs] to [..., outputs]."""
        weight, channel_scale, _ = self._get_weight_params(layer)
        out: Tensor = w4a8_op(x, weight, layer.tersely_groups, channel_scale, None, bias)
        return out


def register_if_asked() -> None:
    """Put the kernel first in vLLM's list for CPUs if the environment asks for it, once.

    Raises OptionError for a value of the variable other than 1, 0 and nothing.
    """
    asked = os.environ.get(SWITCH) or "0"
    if asked not in ("0", "1"):
        raise unknown(SWITCH, asked, ("0", "1"))
    kernels = _POSSIBLE_KERNELS.setdefault(PlatformEnum.CPU, [])
    if asked == "0" or TerselyInt4LinearKernel in kernels:
        return
    if not compiled():
        _log.warning("%s=1 changes nothing: tersely's kernels are not compiled, or switched off", SWITCH)
        return
    register_linear_kernel(TerselyInt4LinearKernel, PlatformEnum.CPU, "mp")
    kernels.insert(0, kernels.pop())  # it appends, and the first that can take a layer does
    # Compiled models are kept under a hash of vLLM's own variables, and one of another kernel must not be taken for
    # ours. A name that disables nothing makes the difference.
    names = [name for name in os.environ.get(_DISABLED, "").split(",") if name]
    os.environ[_DISABLED] = ",".join([*names, *([] if _MARK in names else [_MARK])])


def _refusal(c: MPLinearLayerConfig) -> str | None:
    """Why a layer cannot be taken, None if it can."""
    inputs, outputs = c.partition_weight_shape
    if not current_platform.is_cpu():
        return "it does not run on a CPU"
    if (c.weight_type, c.zero_points) not in ((scalar_types.uint4b8, False), (scalar_types.uint4, True)):
        with_zeros = "with" if c.zero_points else "without"
        return f"weights are {c.weight_type} {with_zeros} zeros; accepted: uint4b8 without, uint4 with zeros"
    if c.act_type not in KINDS:
        return f"activations are {c.act_type}; accepted: {', '.join(map(str, KINDS))}"
    if getattr(c, "has_g_idx", False):
        return "groups are not of inputs that follow each other (act-order); quantize without desc_act"
    if outputs % TILE:
        return f"{outputs} outputs; accepted: multiples of {TILE}"
    if inputs % 8 or not 0 < inputs <= DEEPEST:
        return f"{inputs} inputs; accepted: multiples of 8 up to {DEEPEST}"
    if kernel_size(c.group_size, inputs) is None:
        return f"groups of {c.group_size} of {inputs} inputs; accepted: multiples of 32 that divide them, or -1"
    return None
