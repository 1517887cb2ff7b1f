"""MAH-DPO: pairs by objective, one head for each, and their mixtures as ordinary models."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
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
from tersely.training.offline import SampledTrace, collect_traces
from tersely.training.research import mahdpo
from tersely.training.research.mahdpo import (
    FILE,
    Heads,
    install_heads,
    load_heads,
    make_objective_pairs,
    mix_heads,
    set_head_weights,
)
from tersely.training.training_run import MODEL

from ...support.trainings import train

BASE = "tersely-tiny-small"
OWN: dict[str, Any] = {
    "mahdpo": {"samples": 4, "gap": 0.05},
    "rollouts": {"prompts": 6, "max_new_tokens": 240},
    "optimizer": {"micro_batch": 3, "steps": 2, "learning_rate": 1e-3},
    "data": {"questions": 12},
}


@pytest.fixture(scope="module", autouse=True)
def _sampled_once() -> Iterator[None]:
    """All runs learn from the same answers."""
    made: list[Any] = []

    def collect_once(*given: Any) -> Any:
        if not made:
            made.append(collect_traces(*given))
        return made[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mahdpo, "collect_traces", collect_once)
        yield


def trace(length: int, right: bool = True, finished: bool = True) -> SampledTrace:
    return SampledTrace([1], [2] * length, [1] * length, right, finished)


def first_loss(out: Path) -> float:
    return float(json.loads((out / "curve.jsonl").read_text().splitlines()[0])["loss"])


def test_pairs_differ_in_their_objective() -> None:
    brief, long, wrong, broken = trace(10), trace(20), trace(15, right=False), trace(30, right=False, finished=False)
    traces = [brief, long, wrong, broken]

    def found(objective: str) -> list[tuple[int, int]]:
        pairs = make_objective_pairs(objective, traces, Random(0), 9, 0.2)
        return sorted((p.chosen.length, p.rejected.length) for p in pairs)

    assert found("accuracy") == [(10, 15), (20, 15)]
    assert found("brevity") == [(10, 20)]
    assert found("format") == [(10, 30), (15, 30), (20, 30)]
    assert len(make_objective_pairs("format", traces, Random(0), 2, 0.2)) == 2
    assert not make_objective_pairs("brevity", [brief, trace(11)], Random(0), 9, 0.2)


def test_questions_rarely_answered_right_teach_no_brevity() -> None:
    traces = [trace(10), trace(20), trace(15, right=False), trace(15, right=False), trace(15, right=False)]
    assert len(make_objective_pairs("brevity", traces, Random(0), 9, 0.2, min_accuracy=0.4)) == 1
    assert not make_objective_pairs("brevity", traces, Random(0), 9, 0.2, min_accuracy=0.5)
    assert make_objective_pairs("accuracy", traces, Random(0), 9, 0.2, min_accuracy=0.5)


def test_mixed_heads_give_mixed_logits() -> None:
    names, x = ("accuracy", "brevity", "format"), torch.randn(5, 8)
    heads = Heads(torch.randn(30, 8), names)
    with torch.no_grad():
        for weight in heads.heads:
            weight.add_(torch.randn(30, 8))
    logits = []
    for heads.active in range(3):
        logits.append(heads(x))
    weights: dict[str, Any] = {"accuracy": np.float32(3), "format": np.int64(1)}
    found = mix_heads(dict(zip(names, heads.heads, strict=True)), weights)
    torch.testing.assert_close(x @ found.T, 0.75 * logits[0] + 0.25 * logits[2])


@pytest.mark.parametrize(
    ("weights", "code"),
    [
        ({"acuracy": 1.0}, "unknown_name"),
        ({"accuracy": -1.0}, "invalid_weight"),
        ({"accuracy": math.nan}, "invalid_weight"),
        ({"accuracy": 0.0}, "invalid_weight"),
    ],
)
def test_invalid_weights_are_refused(weights: dict[str, Any], code: str) -> None:
    with pytest.raises(OptionError) as error:
        mix_heads({"accuracy": torch.zeros(2, 2), "brevity": torch.zeros(2, 2)}, weights)
    assert error.value.code == code


def test_a_tied_head_is_refused_and_unchanged() -> None:
    model = load_engine(BASE).model
    before = model.get_input_embeddings().weight.detach().clone()
    with pytest.raises(ModelError) as error:
        set_head_weights(model, {"accuracy": torch.zeros_like(before)}, {"accuracy": 1.0})
    assert error.value.code == "other_model"
    assert torch.equal(model.get_input_embeddings().weight, before)


@pytest.mark.parametrize("shape", [(1, 128), (970, 64), (969, 128)])
def test_heads_of_another_model_are_refused(shape: tuple[int, int]) -> None:
    model = load_engine(BASE).model
    names = ("accuracy", "brevity")
    install_heads(model, names)
    before = model.get_output_embeddings().weight.detach().clone()
    heads = dict(zip(names, (torch.zeros_like(before), torch.zeros(shape)), strict=True))
    for name in names:
        with pytest.raises(ModelError) as error:
            set_head_weights(model, heads, {name: 1.0})
        assert error.value.code == "other_model"
    assert torch.equal(model.get_output_embeddings().weight, before)


def test_a_folder_without_heads_is_refused(tmp_path: Path) -> None:
    for folder in (tmp_path, str(tmp_path)):
        with pytest.raises(ModelError) as error:
            load_heads(folder)
        assert error.value.code == "no_heads"


@pytest.mark.slow
def test_heads_are_trained_and_blended(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "heads"
    said = train("mahdpo", out, **OWN)
    assert any("pairs of brevity" in line for line in said), said
    assert first_loss(out) == pytest.approx(math.log(2), rel=0.05), "DPO's loss before anything but the noise"
    heads = load_heads(str(out / MODEL))
    assert sorted(heads) == ["accuracy", "brevity", "format"]
    # Pairs have changed only the head of their objective, from the same start but for the noise.
    before = load_engine(BASE).model.get_output_embeddings().weight
    starts = Heads(before, ["accuracy", "brevity", "format"], noise=1e-3, seed=0)
    pairs = zip(starts.names, starts.heads, strict=True)
    moved = {name: (heads[name] - start).abs().max().item() for name, start in pairs}
    assert all(1e-5 < change < 0.1 for change in moved.values()), moved
    saved = load_file(out / MODEL / "model.safetensors")
    torch.testing.assert_close(saved["lm_head.weight"], sum(heads.values()) / 3)
    folder = tmp_path / "brief"
    assert main(["train", "blend", str(out / MODEL), str(folder), "--weight", "brevity=2"]) == 0
    engine = load_engine(str(folder))
    assert torch.equal(engine.model.get_output_embeddings().weight, heads["brevity"])
    assert not (folder / FILE).exists()
    set_head_weights(engine.model, heads, {"accuracy": 1})
    assert torch.equal(engine.model.get_output_embeddings().weight, heads["accuracy"])
    assert tersely.generate(
        str(folder), prompts="Kai has 9 shells. Count the shells.", max_new_tokens=16, answer_reserve=8
    ).text
    capsys.readouterr()
    for arguments, complaint in (
        ([str(out / MODEL), str(folder), "--weight", "brevity=2"], str(folder)),
        ([str(out / MODEL), str(tmp_path / "x"), "--weight", "brevity"], "NAME=WEIGHT"),
        ([str(folder), str(tmp_path / "x"), "--weight", "brevity=1"], FILE),
    ):
        assert main(["train", "blend", *arguments]) == 2
        assert complaint in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


@pytest.mark.slow
def test_frozen_models_train_only_heads_and_nll_is_added(tmp_path: Path) -> None:
    few = {**OWN, "optimizer": {**OWN["optimizer"], "steps": 1}}
    train("mahdpo", tmp_path / "out", **{**few, "mahdpo": {**OWN["mahdpo"], "frozen": True, "nll_weight": 0.5}})
    assert first_loss(tmp_path / "out") > math.log(2) + 0.02
    before = load_engine(BASE).model.state_dict()
    saved = load_file(tmp_path / "out" / MODEL / "model.safetensors")
    moved = [name for name, weight in saved.items() if not torch.equal(weight, before[name])]
    assert moved == ["lm_head.weight"]


def test_recipes_and_models_that_cannot_have_heads_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as error:
        train("mahdpo", tmp_path / "a", **{**OWN, "optimizer": {"lora": {"rank": 2}}})
    assert error.value.code == "no_lora"
    with pytest.raises(RecipeError) as error:
        train("mahdpo", tmp_path / "b", **{**OWN, "mahdpo": {"objectives": ["format", "format"]}})
    assert error.value.code == "invalid_value"
    with pytest.raises(RecipeError) as error:
        train("mahdpo", tmp_path / "c", **{**OWN, "optimizer": {"micro_batch": 2}})
    assert error.value.code == "small_micro_batch"
    model = load_engine(BASE).model
    install_heads(model, ("accuracy", "brevity"))
    with pytest.raises(ModelError) as unsupported:
        install_heads(model, ("accuracy", "brevity"))
    assert unsupported.value.code == "unsupported_head"
