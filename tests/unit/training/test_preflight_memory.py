"""Recipes for real models: a dry run on their shapes accepts them and estimates the memory that they state."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from tersely.models import get_model_path
from tersely.training.config import read_recipe
from tersely.training.methods import load_method
from tersely.training.preflight import (
    ONE_MODEL,
    MemoryEstimate,
    ResidentModels,
    estimate_memory,
    load_meta_engine,
)
from tersely.training.research.mahdpo import install_heads

from ...support.trainings import make_recipe

RECIPES = [
    path
    for path in sorted((Path(__file__).parents[3] / "training" / "recipes").glob("*.yaml"))
    if not str(yaml.safe_load(path.read_text("utf-8"))["model"]).startswith("tersely-")
]
QWEN3: dict[str, Any] = {"num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936}
COLUMNS = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
SHAPES: dict[str, tuple[tuple[int, int, int, int], dict[str, Any]]] = {
    "Qwen/Qwen3-1.7B": ((2048, 6144, 28, 16), {**QWEN3, "tie_word_embeddings": True}),
    "Qwen/Qwen3-4B": ((2560, 9728, 36, 32), {**QWEN3, "tie_word_embeddings": True}),
    "Qwen/Qwen3-8B": ((4096, 12288, 36, 32), QWEN3),
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B": (
        (1536, 8960, 28, 12),
        {"num_key_value_heads": 2, "vocab_size": 151936},
    ),
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B": (
        (3584, 18944, 28, 28),
        {"num_key_value_heads": 4, "vocab_size": 152064},
    ),
}


def stand_in(name: str, folder: Path) -> Path:
    """The configuration of a model with the tokenizer of an embedded one."""
    from transformers import Qwen2Config, Qwen3Config

    shutil.copytree(
        get_model_path("tersely-tiny-small"), folder, ignore=shutil.ignore_patterns("*.safetensors", "config.json")
    )
    kind = Qwen3Config if "Qwen3" in name else Qwen2Config
    sizes, others = SHAPES[name]
    named = dict(zip(COLUMNS, sizes, strict=True))
    architecture = kind.__name__.replace("Config", "ForCausalLM")
    kind(architectures=[architecture], dtype="bfloat16", **named, **others).save_pretrained(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_state_the_memory_that_a_dry_run_estimates(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = path.read_text("utf-8")
    values = yaml.safe_load(text)
    monkeypatch.chdir(tmp_path)
    lines = [json.dumps({"id": i, "problem": f"What is {i} + 1?", "answer": str(i + 1)}) for i in range(128)]
    Path("questions.jsonl").write_text("\n".join(lines), "utf-8")
    method = load_method(values["method"])
    changes = [f"model={stand_in(values['model'], tmp_path / 'model')}"]
    if "start" in values.get("adaptthink", {}):
        changes.append("adaptthink.start=null")  # not a single token of the small tokenizer
    found = method.validate(read_recipe(path, method.recipe, values["method"], changes)).findings
    (estimated,) = re.findall(r"memory: about ([\d.]+) GiB", "\n".join(found))
    (stated,) = re.findall(r"[Aa]bout ([\d.]+) GiB with short prompts", text)
    assert estimated == stated
    assert float(stated) < 75, "it fits a GPU of 80 GB"


def test_resident_models_are_counted(tmp_path: Path) -> None:
    model = load_meta_engine("tersely-tiny-small").model

    def counted(held: ResidentModels = ONE_MODEL, **sections: Any) -> MemoryEstimate:
        return estimate_memory(model, make_recipe("ser", tmp_path, **sections), 300, held)

    every = sum(weight.numel() for weight in model.parameters())
    alone, pairs = counted(), counted(ResidentModels(reference=True, sequences=2))
    assert (pairs.weights, pairs.activations) == (2 * alone.weights, 2 * alone.activations)
    assert pairs.cache == alone.cache > 0
    assert counted(ResidentModels(models=3)).weights == 3 * alone.weights
    assert (
        counted(ResidentModels(trained="nothing")).training
        == 0
        < counted(ResidentModels(trained="embeddings")).training
        < alone.training
    )
    heads = counted(ResidentModels(heads=3, trained="heads"))
    assert 0 < heads.training < alone.training and heads.activations < alone.activations / 2
    adapters = counted(ResidentModels(reference=True), optimizer={"lora": {"rank": 2}})
    assert adapters.weights == alone.weights and adapters.training < alone.training
    inside_vllm = counted(rollouts={"engine": "vllm"})
    assert (inside_vllm.cache, inside_vllm.weights) == (0, 2 * alone.weights)
    size = alone.weights / every
    estimated = counted(ResidentModels(heads=3)).weights / size
    install_heads(model, ("accuracy", "brevity", "format"))
    assert estimated == sum(weight.numel() for weight in model.parameters())


def saved_bytes(config: Any, *, dtype: str, lora: bool, autocast: bool) -> float:
    """Bytes per token that PyTorch saves for the backward pass through the layers, without weights."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype)).train()
    if lora:
        model = get_peft_model(model, LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM"))
    ours = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    found: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in ours:
            found[storage.data_ptr()] = storage
        return tensor

    ids, mask = torch.zeros(2, 96, dtype=torch.long), torch.ones(2, 96, dtype=torch.long)
    mask[0, :5] = 0
    layers = model.base_model.model.model if lora else model.model
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), torch.autocast("cpu", enabled=autocast):
        layers(input_ids=ids, attention_mask=mask, use_cache=False)
        return sum(storage.nbytes() for storage in found.values()) / ids.numel()


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize(("dtype", "lora"), [("bfloat16", True), ("float32", True), ("float32", False)])
@pytest.mark.parametrize("kind", ["Qwen2", "Qwen3"])
def test_activation_memory_is_close_to_the_estimate(
    kind: str, dtype: str, lora: bool, autocast: bool, tmp_path: Path
) -> None:
    import torch
    import transformers

    sizes = {"hidden_size": 256, "intermediate_size": 1024, "num_attention_heads": 4, "num_key_value_heads": 2}
    made = make_recipe(
        "ser", tmp_path, optimizer={"micro_batch": 1, "lora": {"rank": 8} if lora else None, "dtype": dtype}
    )
    measured, estimated = [], []
    for layers in (2, 4):
        kinds = getattr(transformers, f"{kind}Config")
        config = kinds(**sizes, head_dim=64, num_hidden_layers=layers, vocab_size=64, tie_word_embeddings=True)
        measured.append(saved_bytes(config, dtype=dtype, lora=lora, autocast=autocast))
        with torch.device("meta"):
            bare = transformers.AutoModelForCausalLM.from_config(config)
        estimated.append(estimate_memory(bare, made, 1).activations)
    ratio = (estimated[1] - estimated[0]) / (measured[1] - measured[0])
    assert 0.9 < ratio < 1.45, "neither out of memory nor overly cautious"
