"""Loading of quantized checkpoints in vLLM: importing this file registers the method, as the entry point does.

Layers that vLLM fuses are concatenated without repacking, so each part must consist of whole tiles of outputs.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor
from vllm.model_executor.layers.linear import (
    LinearBase,
    LinearMethodBase,
    QKVParallelLinear,
    register_weight_loader_v2_supported_method,
)
from vllm.model_executor.layers.quantization import register_quantization_config
from vllm.model_executor.layers.quantization.base_config import QuantizationConfig
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.model_executor.parameter import ChannelQuantScaleParameter, PackedvLLMParameter, RowvLLMParameter
from vllm.model_executor.utils import set_weight_attrs
from vllm.platforms import current_platform

from ...errors import ModelError
from ..w4a8 import w4a8_op
from ..w4a8_layout import TILE, PackedLayout, zeros
from .int4 import SWITCH
from .linear import KEY_LAYERS, METHOD, Scheme, parameter_shapes, read_scheme


def register() -> None:
    """The package's entry point for vLLM; importing this file has already registered the method."""
    if os.environ.get(SWITCH):  # imported only on request, because it depends on internals of vLLM
        from .vllm_int4 import register_if_enabled

        register_if_enabled()


@register_quantization_config(METHOD)
class VLLMW4A8Config(QuantizationConfig):
    """The `quantization_config` of a checkpoint in vLLM."""

    def __init__(self, scheme: Scheme) -> None:
        super().__init__()
        self.scheme = scheme

    def get_name(self) -> str:
        return METHOD

    def get_supported_act_dtypes(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float32, torch.float16]

    @classmethod
    def get_min_capability(cls) -> int:
        """See vLLM; -1: no GPU is needed."""
        return -1

    @staticmethod
    def get_config_filenames() -> list[str]:
        """See vLLM; everything is in config.json."""
        return []

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """See vLLM; raises ModelError for a checkpoint of another version, and on accelerators."""
        if not current_platform.is_cpu():
            raise ModelError(
                f"this checkpoint is quantized for CPUs ({METHOD}), and vLLM runs on {current_platform.device_name}; "
                "load the original model there, or one quantized for GPUs (docs/VLLM.md)",
                code="cpu_checkpoint",
            )
        return cls(read_scheme(config))

    def get_quant_method(self, layer: torch.nn.Module, prefix: str) -> LinearMethodBase | None:
        scheme = self.scheme
        if isinstance(layer, ParallelLMHead):
            return None if scheme.head == "keep" else W4A8Method(scheme.choose_layout(prefix, head=True), scheme)
        if not isinstance(layer, LinearBase):
            return None
        if scheme.keys == "int8":
            if isinstance(layer, QKVParallelLinear):
                return MixedQKVMethod(scheme)
            fused = self.packed_modules_mapping.get(prefix.rpartition(".")[2], ())
            if {*fused} & {*KEY_LAYERS}:
                raise ModelError(
                    f"vLLM fuses {', '.join(fused)} into {prefix}; quantize the model with --keys int4",
                    code="fused_layers",
                )
        return W4A8Method(scheme.choose_layout(prefix), scheme)


@register_weight_loader_v2_supported_method
class W4A8Method(LinearMethodBase):
    """A linear layer whose weights are all in one layout."""

    def __init__(self, layout: PackedLayout, scheme: Scheme) -> None:
        self.layout, self.scheme = layout, scheme

    def create_weights(
        self,
        layer: torch.nn.Module,
        input_size_per_partition: int,
        output_partition_sizes: list[int],
        input_size: int,
        output_size: int,
        params_dtype: torch.dtype,
        **extra: Any,
    ) -> None:
        """See vLLM; raises ModelError for parts that cannot be fused or sharded."""
        inputs, outputs = input_size_per_partition, sum(output_partition_sizes)
        _check_fused(output_partition_sizes)
        size = self.scheme.group_size if self.layout is PackedLayout.GRAINS else self.layout.inputs
        for name, own, whole, unit in (("inputs", inputs, input_size, size), ("outputs", outputs, output_size, TILE)):
            if own != whole and own % unit:
                message = f"{own} {name} per device; accepted: multiples of {unit}; use fewer devices"
                raise ModelError(message, code="cannot_shard")
        head = isinstance(layer, ParallelLMHead)
        loader = _head_loader(layer, self.layout) if head else extra.get("weight_loader")
        for name, (shape, dtype) in parameter_shapes(inputs, outputs, self.layout, self.scheme).items():
            data = zeros(shape, dtype)
            if head:
                parameter = torch.nn.Parameter(data, requires_grad=False)
                set_weight_attrs(parameter, {"weight_loader": loader})
            elif name == "channel_scale":
                parameter = ChannelQuantScaleParameter(data=data, output_dim=0, weight_loader=loader)
            elif name == "input_scale":
                parameter = RowvLLMParameter(data=data, input_dim=0, weight_loader=loader)
            else:
                parameter = PackedvLLMParameter(
                    data=data, input_dim=1, output_dim=0, packed_dim=0, packed_factor=TILE, weight_loader=loader
                )
            layer.register_parameter(name, parameter)
        for name in {"groups", "input_scale"} - set(layer._parameters):
            layer.register_parameter(name, None)

    def apply(self, layer: torch.nn.Module, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Compute [..., outputs] from [..., inputs]."""
        out: Tensor = w4a8_op(x, layer.weight, layer.groups, layer.channel_scale, layer.input_scale, bias)
        return out


class MixedQKVMethod(LinearMethodBase):
    """The fused layer of queries with 4-bit weights, and keys and values with 8-bit weights."""

    def __init__(self, scheme: Scheme) -> None:
        self.scheme = scheme

    def create_weights(
        self,
        layer: torch.nn.Module,
        input_size_per_partition: int,
        output_partition_sizes: list[int],
        *others: Any,
        **extra: Any,
    ) -> None:
        """See vLLM; raises ModelError for parts that cannot be fused."""
        _check_fused(output_partition_sizes)
        queries, *key_sizes = output_partition_sizes  # of keys and values
        shapes = parameter_shapes(input_size_per_partition, queries, PackedLayout.GRAINS, self.scheme)
        key_shapes = parameter_shapes(input_size_per_partition, sum(key_sizes), PackedLayout.BYTES, self.scheme)
        for name, (shape, dtype) in shapes.items():
            parameter = torch.nn.Parameter(zeros(shape, dtype), requires_grad=False)
            layer.register_parameter(name, parameter)
            keys = f"keys_{name}"
            if name in key_shapes and name != "input_scale":  # all parts share the input scale
                layer.register_buffer(keys, zeros(*key_shapes[name]))
            set_weight_attrs(parameter, {"weight_loader": _part_loader(layer, keys, key_sizes)})
        if "input_scale" not in shapes:
            layer.register_parameter("input_scale", None)

    def apply(self, layer: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Compute [..., outputs] from [..., inputs]."""
        queries = layer.weight, layer.groups, layer.channel_scale, layer.input_scale
        out: Tensor = w4a8_op(x, *queries, bias, layer.keys_weight, layer.keys_channel_scale)
        return out


def _check_fused(parts: list[int]) -> None:
    """Raise ModelError for layers that cannot be concatenated without repacking."""
    if any(part % TILE for part in parts) and len(parts) > 1:
        raise ModelError(f"vLLM fuses layers of {parts} outputs; accepted: multiples of {TILE}", code="fused_layers")


def _part_loader(layer: Any, buffer: str, sizes: list[int]) -> Callable[[Tensor, Tensor, str], None]:
    """A weight loader for this device's share of queries, into the parameter, and of keys and values, into `buffer`."""

    def load(param: Tensor, loaded: Tensor, part: str) -> None:
        keys = getattr(layer, buffer, None)
        rank, target = layer.tp_rank, param.data
        if part != "q" and keys is not None:
            first = len(keys) * sizes[0] // sum(sizes)
            rank, target = rank // layer.num_kv_head_replicas, keys[first:] if part == "v" else keys[:first]
        if target.shape == loaded.shape:
            rank = 0
        shard = loaded[rank * len(target) : (rank + 1) * len(target)]
        if shard.shape != target.shape:
            raise ModelError(
                f"{part} has shape {tuple(loaded.shape)} in the file; accepted: shards of {tuple(target.shape)}",
                code="shape_mismatch",
            )
        target.copy_(shard)

    return load


def _head_loader(layer: Any, layout: PackedLayout) -> Callable[[Tensor, Tensor], None]:
    """A weight loader for this device's share of the head; the padding of the vocabulary stays zero."""

    def load(parameter: Tensor, loaded: Tensor) -> None:
        if parameter.shape == loaded.shape:
            parameter.data.copy_(loaded)
            return
        per_row = 1 if parameter.ndim == 1 else TILE
        start = layer.shard_indices.org_vocab_start_index // per_row
        planes = layout is PackedLayout.PLANES and parameter.ndim == 4  # the planes are the first dimension
        target = parameter.data
        if planes:
            target, loaded = target.transpose(0, 1), loaded.transpose(0, 1)
        part = loaded[start : start + len(target)]
        target[: len(part)].copy_(part)

    return load
