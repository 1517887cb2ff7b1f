"""Quantization of all linear layers of a model, in place and resumable."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from ...errors import ModelError
from ...io import CheckpointLog, WriteError, write
from ..w4a8_layout import DEEPEST, PackedLayout, pack, pack_bytes, pack_planes
from .calibration import Inputs, capture_inputs, perplexity
from .dual_grained import outlier_scale, quantize_dual_grained, quantize_gptq, quantize_int8
from .linear import (
    ScaleSearch,
    Scheme,
    W4A8Config,
    W4A8Quantizer,
    empty_like,
    find_head,
    find_quantizable,
    resolve_scheme,
)

MAX_GRAM_BYTES = 4 << 30
"""Memory for input statistics. If more is needed, the model runs on the text again for further layers."""
LEAST_COVERED = 0.5  # the least share of weights, without embeddings, that must be in quantizable layers
LOGIT_TRANSFORMS = (
    "final_logit_softcapping",
    "lm_head_multiplier",
    "logit_scale",
    "logits_mup_width_multiplier",
    "logits_scaling",
    "logits_soft_cap",
    "output_logit_soft_cap",
)
"""Configuration fields that transform the output of the head, which changes the distances between logits."""
Piece = tuple[dict[str, Tensor], dict[str, Any]]  # tensors, and JSON data about them


class LayerCheckpoints:
    """Finished layers and other results in a folder, by a log and a file of tensors each; a killed run resumes."""

    def __init__(self, folder: Path, run: Mapping[str, Any]) -> None:
        self.folder, self.log = folder, CheckpointLog(folder / "log.jsonl", run)

    def load_or_make(self, name: str, make: Callable[[], Piece]) -> Piece:
        """Load a result; if it does not exist yet, make and save it first, in a new folder if it is the first."""
        file = self.folder / f"{name}.safetensors"

        def compute() -> dict[str, Any]:
            tensors, data = make()
            self.folder.mkdir(exist_ok=True)
            write(file, save(tensors))
            return data

        data = self.log.get_or_compute(name, compute)
        try:
            return load_file(file), data
        except (OSError, SafetensorError) as error:
            raise WriteError(f"{file} cannot be read: {error}; delete {self.folder} and run again") from None

    def remove(self) -> None:
        """Delete the folder once the model is saved elsewhere."""
        shutil.rmtree(self.folder, ignore_errors=True)


@dataclass(frozen=True, slots=True)
class QuantizationResult:
    """What became of a model."""

    layers: list[dict[str, Any]]
    """For each layer: name, shape, bits, errors relative to the square of the outputs, number of scaled inputs."""
    bytes_before: int
    bytes_after: int


def quantize_model(
    model: Any,
    rows: Tensor | None = None,
    scheme: Scheme | None = None,
    search: ScaleSearch | None = None,
    checkpoints: LayerCheckpoints | None = None,
    progress: Callable[[str], None] = lambda text: None,
) -> QuantizationResult:
    """Replace the linear layers of a transformers model by W4A8Linear, in place; save_pretrained works afterwards.

    `rows` are token rows [rows, length] to calibrate on; without them, all inputs count equally and none is scaled.
    `progress` is called with a description of each step. Raises ModelError if the model cannot be quantized.
    """
    scheme, search = scheme or Scheme(), search or ScaleSearch()
    check_model(model, scheme)
    scheme = resolve_scheme(model, scheme)
    layers, head = dict(find_quantizable(model, scheme)), find_head(model)
    before = model.get_memory_footprint(return_buffers=False)
    results: list[dict[str, Any]] = []
    for part in _split_layers(layers, scheme, search):
        # 8-bit layers are rounded as they are and need statistics only for scaling.
        missing = {
            n: layer
            for n, layer in part.items()
            if not (checkpoints and n in checkpoints.log.completed)
            and (scheme.smooth or scheme.choose_layout(n, n == head) is PackedLayout.GRAINS)
        }
        inputs: dict[str, Inputs] = {}
        if rows is not None and missing:
            progress(f"reading {rows.numel()} tokens")
            with capture_inputs(missing, scheme.group_size, full=search.compensate) as inputs:
                perplexity(model, rows)
        for name, layer in part.items():
            progress(f"layer {len(results) + 1} of {len(layers)}")
            layout = scheme.choose_layout(name, name == head)
            make = partial(_quantize_layer, name, layer, layout, inputs.pop(name, None), scheme, search)
            tensors, data = checkpoints.load_or_make(name, make) if checkpoints else make()
            results.append({"name": name, "shape": [layer.out_features, layer.in_features], **data})
            module = empty_like(layer, scheme, layout)
            bias = {} if layer.bias is None else {"bias": layer.bias.detach()}
            module.load_state_dict({**tensors, **bias}, assign=True)
            model.set_submodule(name, module.to(layer.weight.device))
    config = model.config.get_text_config(decoder=True)
    config.tie_word_embeddings = model.config.tie_word_embeddings = config.tie_word_embeddings and head not in layers
    model.config.quantization_config = W4A8Config(**scheme.to_dict())
    model.hf_quantizer = W4A8Quantizer(model.config.quantization_config)
    model.is_quantized, model.quantization_method = True, model.config.quantization_config.quant_method
    return QuantizationResult(results, before, model.get_memory_footprint(return_buffers=False))


def check_model(model: Any, scheme: Scheme) -> None:
    """Raise ModelError for a model that cannot be quantized, or already is."""
    quantized = getattr(model.config, "quantization_config", None)
    if quantized is not None or getattr(model, "is_quantized", False):
        method = getattr(quantized, "quant_method", "unknown")
        raise ModelError(
            f"the model is already quantized ({method}); give the original model", code="already_quantized"
        )
    layers = dict(find_quantizable(model, scheme))
    embeddings = sum(p.numel() for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters())
    total = sum(p.numel() for p in model.parameters()) - embeddings
    covered = sum(layer.weight.numel() for name, layer in layers.items() if name != find_head(model))
    if not layers or covered < LEAST_COVERED * total:
        raise ModelError(
            f"{covered / max(total, 1):.0%} of the weights are in linear layers; accepted: models with at least "
            f"{LEAST_COVERED:.0%}, which excludes most mixtures of experts",
            code="too_few_linear_layers",
        )
    config = model.config.get_text_config(decoder=True).to_dict()
    transforms = {name: config[name] for name in LOGIT_TRANSFORMS if config.get(name) not in (None, 1)}
    if scheme.head == "preview" and transforms:
        raise ModelError(
            f"the model transforms its logits by {transforms}, so a preview cannot tell which tokens are unlikely; "
            "accepted: --head int8, int4 or keep",
            code="logits_transformed",
        )
    deep = next((name for name, layer in layers.items() if layer.in_features > DEEPEST), None)
    if deep is not None:
        raise ModelError(
            f"layer {deep} has more than {DEEPEST} inputs; the sums in the kernel could overflow",
            code="too_many_inputs",
        )


def _split_layers(layers: dict[str, nn.Linear], scheme: Scheme, search: ScaleSearch) -> Iterator[dict[str, nn.Linear]]:
    """The layers in order, in parts whose input statistics fit into memory."""
    part: dict[str, nn.Linear] = {}
    available = MAX_GRAM_BYTES
    for name, layer in layers.items():
        size = 4 * layer.in_features * (layer.in_features if search.compensate else scheme.group_size)
        if part and size > available:
            yield part
            part, available = {}, MAX_GRAM_BYTES
        part[name] = layer
        available -= size
    yield part


@torch.no_grad()
def _quantize_layer(
    name: str, layer: nn.Linear, layout: PackedLayout, inputs: Inputs | None, scheme: Scheme, search: ScaleSearch
) -> Piece:
    """The tensors of the quantized layer, and data for the report."""
    weight = layer.weight.detach().float().cpu()
    if not weight.isfinite().all():
        raise ModelError(
            f"layer {name} has weights that are NaN or infinite; check the checkpoint", code="weights_not_finite"
        )
    tensors: dict[str, Tensor] = {}
    report: dict[str, Any] = {}
    scale = None
    if scheme.smooth:
        scale = torch.ones(layer.in_features) if inputs is None else outlier_scale(inputs.highest)
        weight = weight / scale
        tensors["input_scale"], report["scaled inputs"] = scale, int((scale < 1).sum())
    if layout is not PackedLayout.GRAINS:
        integers, channel_scale = quantize_int8(weight)
        error = integers.float().mul_(channel_scale[:, None]).sub_(weight).square().sum() / weight.square().sum()
        packed = pack_planes(integers) if layout is PackedLayout.PLANES else pack_bytes(integers)
        tensors |= {"weight": packed, "channel_scale": channel_scale}
        return tensors, report | {"bits": 8, "error": float(error)}
    size = scheme.group_size
    scaled = None if inputs is None else inputs.scaled(scale)
    if scaled is not None and scaled.full:
        best = quantize_gptq(weight, size, scaled.gram, search=search.ranges)
    else:
        gram = None if scaled is None else scaled.gram
        best = quantize_dual_grained(weight, size, gram, search=search.ranges)
    packed, groups = pack(best.codes, best.fine, best.zero, size)
    tensors |= {"weight": packed, "groups": groups, "channel_scale": best.channel_scale}
    return tensors, report | {"bits": 4, "error": best.error, "error of plain rounding": best.plain_error}
