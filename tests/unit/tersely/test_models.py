"""The embedded models' folders: where they are, and that they hold what loaders look for."""

from __future__ import annotations

import json

import pytest

from tersely.errors import ModelError
from tersely.models import NAMES, get_model_path


@pytest.mark.parametrize("name", NAMES)
def test_folder_is_a_complete_checkpoint(name: str) -> None:
    folder = get_model_path(name)
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["Qwen3ForCausalLM"]  # without it vLLM takes the model for an embedder
    assert config["dtype"] == "float32"
    present = {p.name for p in folder.iterdir()}
    assert {"model.safetensors", "tokenizer.json", "tokenizer_config.json", "generation_config.json"} <= present


def test_unknown_name_is_refused_with_the_nearest() -> None:
    for name, part in (("tiny-small", "did you mean 'tersely-tiny-small'"), ("gpt", "'gpt'; accepted: ")):
        with pytest.raises(ModelError) as error:
            get_model_path(name)
        assert error.value.code == "model_unusable" and part in str(error.value)
