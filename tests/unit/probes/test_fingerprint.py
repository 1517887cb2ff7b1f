"""Fingerprints of models and hashes of questions."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tersely.errors import ModelError
from tersely.models import get_model_path
from tersely.probes.fingerprint import checkpoint_fingerprint, fingerprint, question_hash

from ...support.refusals import refused

SMALL = get_model_path("tersely-tiny-small")


@pytest.fixture(scope="module")
def small() -> Any:
    return AutoModelForCausalLM.from_pretrained(SMALL, dtype=torch.float32)


def test_a_model_has_one_fingerprint_however_it_is_loaded(small: Any) -> None:
    known = fingerprint(small)
    assert known == fingerprint(AutoModelForCausalLM.from_pretrained(SMALL, dtype=torch.bfloat16))
    assert known == checkpoint_fingerprint(SMALL)
    assert known != checkpoint_fingerprint(get_model_path("tersely-tiny-large"))
    assert len(known) == 64


def test_other_weights_names_or_shapes_have_another_fingerprint() -> None:
    def of(**parameters: torch.Tensor) -> str:
        pairs = [(name, torch.nn.Parameter(value)) for name, value in parameters.items()]
        return fingerprint(SimpleNamespace(named_parameters=lambda: iter(pairs)))  # type: ignore[arg-type]

    values = torch.arange(300.0).reshape(20, 15)
    known = of(a=values, b=values[0])
    assert known == of(b=values[0], a=values)
    assert known != of(a=values, c=values[0])
    assert known != of(a=values.reshape(15, 20), b=values[0])
    assert known != of(a=values)
    fine = values / 7
    assert of(a=fine) == of(a=fine.to(torch.bfloat16)) != of(a=fine + 1)
    for place, seen in ((0, True), (63, True), (64, False), (235, False), (236, True), (299, True)):
        other = values.clone()
        other.view(-1)[place] += 100
        assert (of(a=other, b=values[0]) != known) == seen
    with refused(ModelError):
        of(a=torch.empty(2, device="meta"))


def test_a_sharded_checkpoint_has_the_same_fingerprint(small: Any, tmp_path: Path) -> None:
    tensors = load_file(SMALL / "model.safetensors")
    names = sorted(tensors)
    # Tied weights that are written twice, as some checkpoints do.
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    parts = {"one.safetensors": names[::2], "two.safetensors": [*names[1::2], "lm_head.weight"]}
    for file, held in parts.items():
        save_file({name: tensors[name] for name in held}, tmp_path / file)
    index = {"weight_map": {name: file for file, held in parts.items() for name in held}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    shutil.copy(SMALL / "config.json", tmp_path)
    assert checkpoint_fingerprint(tmp_path) == fingerprint(small)
    (tmp_path / "two.safetensors").unlink()
    with refused(ModelError):
        checkpoint_fingerprint(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text("[]")
    with refused(ModelError):
        checkpoint_fingerprint(tmp_path)


def test_the_edges_of_tensors_of_every_shape_are_read(tmp_path: Path) -> None:
    shapes = [(), (1,), (100,), (129,), (300,), (3, 500), (70, 3), (5, 6, 7), (128, 1)]
    tensors = {f"t{i}": torch.randn(shape) for i, shape in enumerate(shapes)}
    save_file(tensors, tmp_path / "model.safetensors")
    module = torch.nn.ParameterDict(tensors)
    assert checkpoint_fingerprint(tmp_path) == fingerprint(module)


def test_a_question_hash_ignores_white_space() -> None:
    assert question_hash("What  is\n2 + 2? ") == question_hash("What is 2 + 2?")
    assert question_hash("What is 2 + 2?") != question_hash("What is 2 +2?")
