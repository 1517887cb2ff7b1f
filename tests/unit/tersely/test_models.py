"""The embedded models' folders: where they are, and that they hold what loaders look for."""

from __future__ import annotations

import json

import pytest

from tersely.models import NAMES, UnknownModelError, get_model_path

from ...support.refusals import refused


@pytest.mark.parametrize("name", NAMES)
def test_folder_is_a_complete_checkpoint(name: str) -> None:
    folder = get_model_path(name)
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["Qwen3ForCausalLM"]  # without it vLLM takes the model for an embedder
    assert config["dtype"] == "float32"
    present = {p.name for p in folder.iterdir()}
    assert {"model.safetensors", "tokenizer.json", "tokenizer_config.json", "generation_config.json"} <= present


def test_unknown_name_is_refused_with_the_nearest() -> None:
    with refused(UnknownModelError):
        get_model_path("tiny-small")
    with refused(UnknownModelError):
        get_model_path("gpt")
