"""Identifying models and questions by a hash of their content."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from ..errors import ModelError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

EDGE = 64
_HEAD = "lm_head.weight"


def question_hash(text: str) -> str:
    """Hash a question's text, ignoring differences in white space."""
    return hashlib.sha256(" ".join(text.split()).encode()).hexdigest()[:16]


def fingerprint(model: torch.nn.Module) -> str:
    """Hash (SHA-256) the names, shapes, and first and last 64 values, as bfloat16, of all parameters.

    A checkpoint has the same fingerprint in float32 and in bfloat16, on any device; tied weights count once. Not
    detected: values changed only in the middle of a tensor, or by less than the precision of bfloat16; another
    tokenizer, chat template or code. float16 and quantized weights count as another model. Raises ModelError for
    weights that were not loaded.
    """
    parts = []
    for name, parameter in model.named_parameters():
        if parameter.is_meta:
            raise ModelError(f"parameter {name} was not loaded (it is on the meta device); load the whole model")
        flat = parameter.detach().reshape(-1)
        parts.append((name, tuple(parameter.shape), [flat[:EDGE], flat[EDGE:][-EDGE:]]))
    return _hash_parts(parts)


def checkpoint_fingerprint(folder: Path | str) -> str:
    """Compute the fingerprint of a model from its safetensors files, reading only the ends of each tensor.

    Where loading renames, fuses or drops tensors, it is another value than `fingerprint`, so that a probe is refused
    rather than misused. Raises ModelError if the files are missing or unreadable.
    """
    folder, parts = Path(folder), []
    try:
        for file in _list_files(folder):
            with safe_open(file, framework="pt") as tensors:
                parts += [(name, *_read_edges(tensors.get_slice(name))) for name in tensors.keys()]  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"{folder} cannot be read: {error}; accepted: a folder with a checkpoint in safetensors"
        ) from None
    if any(name == _HEAD for name, *_ in parts) and _has_tied_head(folder):
        parts = [part for part in parts if part[0] != _HEAD]
    return _hash_parts(parts)


def _list_files(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return [folder / "model.safetensors"]
    try:
        return [folder / name for name in sorted(set(json.loads(index.read_bytes())["weight_map"].values()))]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ModelError(f"{index} is not a valid checkpoint index; download the model again") from None


def _read_edges(part: Any) -> tuple[tuple[int, ...], list[Tensor]]:
    """The shape of a tensor on disk, and its first and last values, read in whole rows."""
    shape = tuple(part.get_shape())
    if math.prod(shape) <= 2 * EDGE:
        flat = part[:].reshape(-1) if shape else part[...].reshape(-1)
        return shape, [flat[:EDGE], flat[EDGE:]]
    rows = -(-EDGE // math.prod(shape[1:]))
    return shape, [part[:rows].reshape(-1)[:EDGE], part[shape[0] - rows :].reshape(-1)[-EDGE:]]


def _has_tied_head(folder: Path) -> bool:
    from transformers import AutoConfig

    return bool(AutoConfig.from_pretrained(folder).get_text_config().tie_word_embeddings)


def _hash_parts(parts: Iterable[tuple[str, tuple[int, ...], Sequence[Tensor]]]) -> str:
    import torch

    digest = hashlib.sha256()
    for name, shape, edges in sorted(parts, key=lambda part: part[0]):
        values = torch.cat([*edges]).to(torch.bfloat16).view(torch.int16).cpu().numpy()
        digest.update(f"{name}\0{shape}\0".encode() + values.tobytes())
    return digest.hexdigest()
