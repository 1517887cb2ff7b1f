"""Vector rewards: pairs by objective, a head for each, and their mixtures as ordinary models."""

from __future__ import annotations

import json
import math
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import tersely
from tersely.cli.app import main
from tersely.controller.engines.transformers.engine import load_engine
from tersely.errors import ModelError, OptionError
from tersely.training.config import RecipeError
from tersely.training.pairs import objective_pairs
from tersely.training.research.heads import FILE, Heads, mix_heads, put_heads, read_heads, weigh_heads
from tersely.training.saving import MODEL
from tersely.training.traces import SampledTrace

from ...support.trainings import train

BASE = "tersely-tiny-small"
OWN: dict[str, Any] = {
    "mahdpo": {"samples": 6, "gap": 0.05},
    "rollouts": {"prompts": 6, "max_new_tokens": 400},
    "optimiser": {"micro_batch": 2, "steps": 3, "learning_rate": 1e-3},
    "data": {"questions": 8},
}


def trace(length: int, right: bool = True, whole: bool = True) -> SampledTrace:
    return SampledTrace([1], [2] * length, [1] * length, right, whole)


def first_loss(out: Path) -> float:
    return float(json.loads((out / "curve.jsonl").read_text().splitlines()[0])["loss"])


def test_pairs_differ_in_their_objective() -> None:
    brief, long, wrong, broken = trace(10), trace(20), trace(15, right=False), trace(30, right=False, whole=False)
    traces = [brief, long, wrong, broken]

    def found(objective: str) -> list[tuple[int, int]]:
        pairs = objective_pairs(objective, traces, Random(0), 9, 0.2)
        return sorted((p.chosen.length, p.rejected.length) for p in pairs)

    assert found("accuracy") == [(10, 15), (20, 15)]
    assert found("brevity") == [(10, 20)]
    assert found("format") == [(10, 30), (15, 30), (20, 30)]
    assert len(objective_pairs("format", traces, Random(0), 2, 0.2)) == 2
    assert not objective_pairs("brevity", [brief, trace(11)], Random(0), 9, 0.2)


def test_what_is_seldom_right_teaches_no_brevity() -> None:
    traces = [trace(10), trace(20), trace(15, right=False), trace(15, right=False), trace(15, right=False)]
    assert len(objective_pairs("brevity", traces, Random(0), 9, 0.2, least=0.4)) == 1
    assert not objective_pairs("brevity", traces, Random(0), 9, 0.2, least=0.5)
    assert objective_pairs("accuracy", traces, Random(0), 9, 0.2, least=0.5)


def test_the_mixture_of_heads_is_that_of_their_logits() -> None:
    names, x = ("accuracy", "brevity", "format"), torch.randn(5, 8)
    heads = Heads(torch.randn(30, 8), names)
    with torch.no_grad():
        for weight in heads.each:
            weight.add_(torch.randn(30, 8))
    logits = []
    for heads.used in range(3):
        logits.append(heads(x))
    weights: dict[str, Any] = {"accuracy": np.float32(3), "format": np.int64(1)}
    found = mix_heads(dict(zip(names, heads.each, strict=True)), weights)
    torch.testing.assert_close(x @ found.T, 0.75 * logits[0] + 0.25 * logits[2])


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ({"acuracy": 1.0}, "did you mean 'accuracy'"),
        ({"accuracy": -1.0}, "0 and more"),
        ({"accuracy": math.nan}, "0 and more"),
        ({"accuracy": 0.0}, "weigh 0"),
        ({"accuracy": "1"}, "objective 'accuracy' weighs '1'; accepted: a number"),
        ({"accuracy": True}, "weighs True; accepted: a number"),
        ({"accuracy": None}, "weighs None; accepted: a number"),
    ],
)
def test_weights_that_are_none_are_refused(weights: dict[str, Any], said: str) -> None:
    with pytest.raises(OptionError, match=said):
        mix_heads({"accuracy": torch.zeros(2, 2), "brevity": torch.zeros(2, 2)}, weights)


def test_a_head_that_is_the_embedding_too_is_left_alone() -> None:
    model = load_engine(BASE).model
    before = model.get_input_embeddings().weight.detach().clone()
    with pytest.raises(ModelError, match=r"input embedding as well .*the folder `model` .*from_pretrained\(folder\)"):
        weigh_heads(model, {"accuracy": torch.zeros_like(before)}, {"accuracy": 1.0})
    assert torch.equal(model.get_input_embeddings().weight, before)


@pytest.mark.parametrize("shape", [(1, 128), (970, 64), (969, 128)])
def test_heads_of_another_model_are_refused(shape: tuple[int, int]) -> None:
    model = load_engine(BASE).model
    names = ("accuracy", "brevity")
    put_heads(model, names)
    before = model.get_output_embeddings().weight.detach().clone()
    both = rf"'brevity' is {shape[0]} x {shape[1]} and that of the model 970 x 128 .*`tersely train mahdpo` wrote"
    heads = dict(zip(names, (torch.zeros_like(before), torch.zeros(shape)), strict=True))
    for name in names:
        with pytest.raises(ModelError, match=both):
            weigh_heads(model, heads, {name: 1.0})
    assert torch.equal(model.get_output_embeddings().weight, before)


def test_what_is_no_folder_of_heads(tmp_path: Path) -> None:
    for folder in (tmp_path, str(tmp_path)):
        with pytest.raises(ModelError, match=r"has no heads .*accepted: the folder `model` of `tersely train mahdpo`"):
            read_heads(folder)


def test_a_training_of_heads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "heads"
    said = train("mahdpo", out, **OWN)
    assert any("pairs of brevity" in line for line in said), said
    assert first_loss(out) == pytest.approx(math.log(2), rel=1e-3), "DPO's, for nothing has moved yet"
    heads = read_heads(str(out / MODEL))
    assert sorted(heads) == ["accuracy", "brevity", "format"]
    # Batches take turns, and each has moved its own head alone, from the same beginning.
    before = load_engine(BASE).model.get_output_embeddings().weight
    moved = {name: (head - before).abs().max().item() for name, head in heads.items()}
    assert all(0 < change < 0.1 for change in moved.values()), moved
    assert not torch.equal(heads["accuracy"], heads["brevity"])
    saved = load_file(out / MODEL / "model.safetensors")
    torch.testing.assert_close(saved["lm_head.weight"], sum(heads.values()) / 3)
    folder = tmp_path / "brief"
    assert main(["train", "blend", str(out / MODEL), str(folder), "--weight", "brevity=2"]) == 0
    engine = load_engine(str(folder))
    assert torch.equal(engine.model.get_output_embeddings().weight, heads["brevity"])
    assert not (folder / FILE).exists()
    weigh_heads(engine.model, heads, {"accuracy": 1})
    assert torch.equal(engine.model.get_output_embeddings().weight, heads["accuracy"])
    assert tersely.generate(str(folder), prompts="Kai has 9 shells. Kai finds 3 more. Count the shells.").text
    capsys.readouterr()
    for arguments, complaint in (
        ([str(out / MODEL), str(folder), "--weight", "brevity=2"], "is there already"),
        ([str(out / MODEL), str(tmp_path / "x"), "--weight", "brevity"], "accepted: NAME=WEIGHT"),
        ([str(folder), str(tmp_path / "x"), "--weight", "brevity=1"], "has no heads"),
    ):
        assert main(["train", "blend", *arguments]) == 2
        assert complaint in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_frozen_the_heads_alone_learn_and_what_is_chosen_may_count(tmp_path: Path) -> None:
    few = {**OWN, "optimiser": {**OWN["optimiser"], "steps": 1}}
    for weight in (0.5, 1.0):
        out = tmp_path / str(weight)
        train("mahdpo", out, **{**few, "mahdpo": {**OWN["mahdpo"], "frozen": True, "likelihood": weight}})
    half, whole = (first_loss(tmp_path / name) - math.log(2) for name in ("0.5", "1.0"))
    assert half > 0.02 and whole == pytest.approx(2 * half, rel=1e-3)
    before = load_engine(BASE).model.state_dict()
    saved = load_file(tmp_path / "1.0" / MODEL / "model.safetensors")
    moved = [name for name, weight in saved.items() if not torch.equal(weight, before[name])]
    assert moved == ["lm_head.weight"]


def test_what_cannot_have_heads(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="heads are whole matrices"):
        train("mahdpo", tmp_path / "a", **{**OWN, "optimiser": {"lora": {"rank": 2}}})
    with pytest.raises(RecipeError, match="named twice"):
        train("mahdpo", tmp_path / "b", **{**OWN, "mahdpo": {"objectives": ["format", "format"]}})
    model = load_engine(BASE).model
    put_heads(model, ("accuracy", "brevity"))
    with pytest.raises(ModelError, match="accepted: a linear layer"):
        put_heads(model, ("accuracy", "brevity"))
