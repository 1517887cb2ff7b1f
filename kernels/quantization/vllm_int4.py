"""Our kernel for int4 checkpoints of other methods in vLLM, enabled by TERSELY_INT4_KERNEL=1.

It is put first in the list from which vLLM selects; layers that it does not support are left to the next, with a line
in the log. Activations are rounded to 8 bits, and group scales as described in `int4.py`.
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

from ...errors import check_known
from ..native import KINDS
from ..w4a8 import compiled, w4a8_op
from ..w4a8_layout import DEEPEST, TILE, to_huge_pages
from .int4 import SWITCH, choose_group_size, repack, unpack_words

WARN_ABOVE = 0.1
"""Relative error of a layer's weights that causes a warning: about the error of rounding to 4 bits itself."""
_DISABLED = "VLLM_DISABLED_KERNELS"
_MARK = "tersely-int4"
_log = init_logger("vllm.tersely")  # below vLLM's own name, so that it is shown


class TerselyInt4LinearKernel(MPLinearKernel):
    """The W4A8 kernel for a layer of int4 weights of any method."""

    @classmethod
    def get_min_capability(cls) -> int:
        """See vLLM; -1: no GPU is needed."""
        return -1

    @classmethod
    def can_implement(cls, c: MPLinearLayerConfig) -> tuple[bool, str | None]:
        """Whether the layer is supported, and why not."""
        reason = _refusal(c)
        if reason:
            shape = tuple(c.partition_weight_shape)
            _log.warning_once("%s: a layer of (inputs, outputs) %s is left to vLLM: %s", SWITCH, shape, reason)
        else:
            _log.info_once("%s: int4 layers get 8-bit activations and rounded group scales", SWITCH)
        return reason is None, reason

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        """Replace the checkpoint's weights and scales by ours, and add `tersely_groups`."""
        words, scale, packed_zero = self._get_weight_params(layer)
        by_output = words.data if words.input_dim == 1 else words.data.t()
        scale = scale.data if scale.output_dim == 0 else scale.data.t()
        if self.config.zero_points:
            by_group = packed_zero.data.t() if packed_zero.output_dim == 0 else packed_zero.data
            zero = unpack_words(by_group).t()[: len(by_output)]
        else:
            zero = torch.full(scale.shape, self.config.weight_type.bias, dtype=torch.uint8)
        repacked = repack(by_output, scale, zero, self.config.group_size)
        if repacked.error > WARN_ABOVE:
            name = getattr(layer, "prefix", "") or "a layer"
            _log.warning(
                "%s: rounding the group scales changes the weights of %s by %.0f %%", SWITCH, name, 100 * repacked.error
            )
        if self.w_zp_name:
            layer._parameters.pop(self.w_zp_name, None)
        for parameter, value in (
            (self.w_q_name, repacked.weight),
            (self.w_s_name, repacked.channel_scale),
            ("tersely_groups", repacked.groups),
        ):
            layer.register_parameter(parameter, torch.nn.Parameter(to_huge_pages(value), requires_grad=False))

    def apply_weights(self, layer: torch.nn.Module, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Compute [..., outputs] from [..., inputs]."""
        weight, channel_scale, _ = self._get_weight_params(layer)
        out: Tensor = w4a8_op(x, weight, layer.tersely_groups, channel_scale, None, bias)
        return out


def register_if_enabled() -> None:
    """Put the kernel first in vLLM's list for CPUs, once, if TERSELY_INT4_KERNEL=1; raises OptionError."""
    value = os.environ.get(SWITCH) or "0"
    check_known(SWITCH, value, ("0", "1"))
    kernels = _POSSIBLE_KERNELS.setdefault(PlatformEnum.CPU, [])
    if value == "0" or TerselyInt4LinearKernel in kernels:
        return
    if not compiled():
        _log.warning("%s=1 has no effect: tersely's kernels are not compiled, or turned off", SWITCH)
        return
    register_linear_kernel(TerselyInt4LinearKernel, PlatformEnum.CPU, "mp")
    kernels.insert(0, kernels.pop())  # it was appended, but the first supported kernel is used
    # vLLM caches compiled models under a hash of its own environment variables. A name that disables nothing changes
    # the hash, so that a model compiled with another kernel is not used for ours.
    names = [name for name in os.environ.get(_DISABLED, "").split(",") if name]
    os.environ[_DISABLED] = ",".join([*names, *([] if _MARK in names else [_MARK])])


def _refusal(c: MPLinearLayerConfig) -> str | None:
    """Why a layer is not supported; None if it is."""
    inputs, outputs = c.partition_weight_shape
    if not current_platform.is_cpu():
        return "the model does not run on a CPU"
    if (c.weight_type, c.zero_points) not in ((scalar_types.uint4b8, False), (scalar_types.uint4, True)):
        with_zeros = "with" if c.zero_points else "without"
        return f"weights are {c.weight_type} {with_zeros} zeros; accepted: uint4b8 without, uint4 with zeros"
    if c.act_type not in KINDS:
        return f"activations are {c.act_type}; accepted: {', '.join(map(str, KINDS))}"
    if getattr(c, "has_g_idx", False):
        return "groups are not of consecutive inputs (act-order); quantize without desc_act"
    if outputs % TILE:
        return f"{outputs} outputs; accepted: multiples of {TILE}"
    if inputs % 8 or not 0 < inputs <= DEEPEST:
        return f"{inputs} inputs; accepted: multiples of 8 up to {DEEPEST}"
    if choose_group_size(c.group_size, inputs) is None:
        return f"groups of {c.group_size} of {inputs} inputs; accepted: multiples of 32 that divide the inputs, or -1"
    return None
