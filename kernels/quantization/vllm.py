"""How vLLM loads a quantized checkpoint: importing this registers the method, as the package's entry point does.

The kernel is the same as under transformers, seen by vLLM's compiler as one op. Layers that vLLM joins, such as
queries, keys and values, are joined as they lie: their parts have to be whole tiles of outputs.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

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

from ...errors import ModelError
from ..huge_pages import zeros
from ..w4a8 import w4a8_op
from ..w4a8_layout import TILE, PackedLayout
from .config import KEY_LAYERS, METHOD, Scheme, read_scheme
from .int4 import SWITCH
from .linear import parameter_shapes


def register() -> None:
    """What the entry point names; by then, the import has registered the method."""
    if os.environ.get(SWITCH):  # what it imports are inner names of vLLM, on which nothing else should depend
        from .vllm_int4 import register_if_asked

        register_if_asked()


@register_quantization_config(METHOD)
class VLLMW4A8Config(QuantizationConfig):
    """The `quantization_config` of a checkpoint, as vLLM keeps it."""

    def __init__(self, scheme: Scheme) -> None:
        super().__init__()
        self.scheme = scheme

    def get_name(self) -> str:
        """See vLLM."""
        return METHOD

    def get_supported_act_dtypes(self) -> list[torch.dtype]:
        """See vLLM."""
        return [torch.bfloat16, torch.float32, torch.float16]

    @classmethod
    def get_min_capability(cls) -> int:
        """See vLLM; -1: no GPU is needed."""
        return -1

    @staticmethod
    def get_config_filenames() -> list[str]:
        """See vLLM; all is in config.json."""
        return []

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> VLLMW4A8Config:
        """See vLLM; raises ModelError for a checkpoint of another version."""
        return cls(read_scheme(config))

    def get_quant_method(self, layer: torch.nn.Module, prefix: str) -> LinearMethodBase | None:
        """The kernel for linear layers and for a head that is quantized."""
        scheme = self.scheme
        if isinstance(layer, ParallelLMHead):
            return None if scheme.head == "keep" else W4A8Method(scheme.form_of(prefix, head=True), scheme)
        if not isinstance(layer, LinearBase):
            return None
        if scheme.keys == "int8":
            if isinstance(layer, QKVParallelLinear):
                return TwoForms(scheme)
            joined = self.packed_modules_mapping.get(prefix.rpartition(".")[2], ())
            if {*joined} & {*KEY_LAYERS}:
                raise ModelError(f"vLLM joins {', '.join(joined)} to {prefix}; quantize the model with --keys int4")
        return W4A8Method(scheme.form_of(prefix), scheme)


@register_weight_loader_v2_supported_method
class W4A8Method(LinearMethodBase):
    """Makes a layer's parameters, in a form, and multiplies with them."""

    def __init__(self, form: PackedLayout, scheme: Scheme) -> None:
        self.form, self.scheme = form, scheme

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
        """See vLLM; raises ModelError for parts that cannot be joined or divided."""
        inputs, outputs = input_size_per_partition, sum(output_partition_sizes)
        _check_joined(output_partition_sizes)
        size = self.scheme.group_size if self.form is PackedLayout.GRAINS else self.form.inputs
        if inputs != input_size and inputs % size:
            raise ModelError(f"{inputs} inputs a device; accepted: whole groups of {size}; use fewer devices")
        if outputs != output_size and outputs % TILE:
            raise ModelError(f"{outputs} outputs a device; accepted: multiples of {TILE}; use fewer devices")
        head = isinstance(layer, ParallelLMHead)
        loader = _head_loader(layer, self.form) if head else extra.get("weight_loader")
        for name, (shape, dtype) in parameter_shapes(inputs, outputs, self.form, self.scheme).items():
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
        """[..., inputs] to [..., outputs]."""
        out: Tensor = w4a8_op(x, layer.weight, layer.groups, layer.channel_scale, layer.input_scale, bias)
        return out


class TwoForms(LinearMethodBase):
    """Queries in 4 bits, and beside them keys and values in 8, which vLLM joins into one layer."""

    def __init__(self, scheme: Scheme) -> None:
        self.scheme = scheme

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
        """See vLLM; raises ModelError for parts that cannot be joined."""
        _check_joined(output_partition_sizes)
        queries, *others = output_partition_sizes  # keys, values
        shapes = parameter_shapes(input_size_per_partition, queries, PackedLayout.GRAINS, self.scheme)
        of_keys = parameter_shapes(input_size_per_partition, sum(others), PackedLayout.BYTES, self.scheme)
        for name, (shape, dtype) in shapes.items():
            parameter = torch.nn.Parameter(zeros(shape, dtype), requires_grad=False)
            layer.register_parameter(name, parameter)
            keys = f"keys_{name}"
            if name in of_keys and name != "input_scale":  # which is the same for all
                layer.register_buffer(keys, zeros(*of_keys[name]))
            set_weight_attrs(parameter, {"weight_loader": _part_loader(layer, keys, others)})
        if "input_scale" not in shapes:
            layer.register_parameter("input_scale", None)

    def apply(self, layer: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """[..., inputs] to [..., outputs]."""
        queries = layer.weight, layer.groups, layer.channel_scale, layer.input_scale
        out: Tensor = w4a8_op(x, *queries, bias, layer.keys_weight, layer.keys_channel_scale)
        return out


def _check_joined(parts: list[int]) -> None:
    """Raise ModelError for layers that cannot be joined as they lie."""
    if any(part % TILE for part in parts) and len(parts) > 1:
        raise ModelError(f"layers of {parts} outputs are joined by vLLM; accepted: multiples of {TILE}")


def _part_loader(layer: Any, buffer: str, sizes: list[int]) -> Callable[[Tensor, Tensor, str], None]:
    """Loads what this device has of queries into a parameter, of keys and values (sizes) into a buffer if any."""

    def load(param: Tensor, loaded: Tensor, part: str) -> None:
        keys = getattr(layer, buffer, None)
        rank, to = layer.tp_rank, param.data
        if part != "q" and keys is not None:
            first = len(keys) * sizes[0] // sum(sizes)
            rank, to = rank // layer.num_kv_head_replicas, keys[first:] if part == "v" else keys[:first]
        if to.shape == loaded.shape:
            rank = 0
        mine = loaded[rank * len(to) : (rank + 1) * len(to)]
        if mine.shape != to.shape:
            raise ModelError(f"{part} has {tuple(loaded.shape)} in the file; accepted: parts of {tuple(to.shape)}")
        to.copy_(mine)

    return load


def _head_loader(layer: Any, form: PackedLayout) -> Callable[[Tensor, Tensor], None]:
    """Loads the part of a head that this device has; what vLLM pads vocabularies with stays zero."""

    def load(parameter: Tensor, loaded: Tensor) -> None:
        if parameter.shape == loaded.shape:
            parameter.data.copy_(loaded)
            return
        per_row = 1 if parameter.ndim == 1 else TILE
        start = layer.shard_indices.org_vocab_start_index // per_row
        planes = form is PackedLayout.PLANES and parameter.ndim == 4  # they come before the tiles
        to, given = (parameter.data.transpose(0, 1), loaded.transpose(0, 1)) if planes else (parameter.data, loaded)
        part = given[start : start + len(to)]
        to[: len(part)].copy_(part)

    return load
