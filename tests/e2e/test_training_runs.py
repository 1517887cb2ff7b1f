"""Runs that are killed, diverge, collapse, or are resumed."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tersely.training.config import Alarm, Recipe, RecipeError
from tersely.training.methods import load_method
from tersely.training.rewards import Correctness
from tersely.training.run import prepare_folder
from tersely.training.sampling import DivergedError
from tersely.training.training_run import (
    COMPLETE,
    CollapseAlarm,
    CollapseError,
    RunRecorder,
    prune_checkpoints,
)

from ..support.forked import fork
from ..support.refusals import refused
from ..support.trainings import make_recipe, train
from .test_training_methods import curve

QUICK: dict[str, Any] = {
    "data": {"efforts": ["easy"]},
    "rollouts": {"max_new_tokens": 70},
    "optimizer": {"steps": 3},
    "adaptthink": {"reference_samples": 1, "no_think_tokens": 24},
}


def figures(folder: Path) -> list[tuple[float, ...]]:
    return [
        (log["step"], log["loss"], log["reward"], log["grad_norm"], log["policy/no_think"]) for log in curve(folder)
    ]


def test_a_killed_run_resumes_with_identical_results(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    train("adaptthink", whole, **QUICK)
    process = fork(train, "adaptthink", killed, **QUICK)
    try:
        until = time.monotonic() + 300
        while not (killed / "checkpoint-1" / COMPLETE).exists():
            assert time.monotonic() < until and process.is_alive()
            time.sleep(0.02)
    finally:
        process.kill()
        process.join()
    assert len(curve(killed)) < 3
    (killed / "checkpoint-99").mkdir()  # a half-written checkpoint
    (killed / "checkpoint-99" / "model.safetensors").write_bytes(b"half")
    said = train("adaptthink", killed, resume=True, **QUICK)
    assert any(line.startswith("resuming from") and "checkpoint-99" not in line for line in said)
    assert figures(killed) == figures(whole) and len(figures(whole)) == 3


def test_a_non_finite_loss_ends_the_run_before_it_changes_the_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    inner = Correctness.__call__

    def broken(self: Correctness, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> Any:
        calls.append(1)
        right = inner(self, prompts, completions, **columns)
        return [float("inf")] * len(right) if len(calls) == 3 else right

    monkeypatch.setattr(Correctness, "__call__", broken)
    out = tmp_path / "out"
    with refused(DivergedError):
        train("adaptthink", out, **QUICK)
    good = prune_checkpoints(out)
    assert good is not None and good.name == "checkpoint-1"
    train("adaptthink", out, resume=True, **QUICK)
    assert [log["step"] for log in curve(out)] == [1, 2, 3]


def test_a_checkpoint_of_diverged_weights_is_not_good(tmp_path: Path) -> None:
    with pytest.raises(DivergedError):
        train("adaptthink", tmp_path / "out", **{**QUICK, "optimizer": {"steps": 3, "learning_rate": 1e30}})
    assert (tmp_path / "out" / "checkpoint-1").is_dir() and prune_checkpoints(tmp_path / "out") is None


def test_a_policy_that_always_thinks_stops_the_run(tmp_path: Path) -> None:
    said: list[str] = []
    with refused(CollapseError):
        train("adaptthink", tmp_path / "out", said, **QUICK, alarm={"grace": 0, "window": 2, "all_think": 0.01})
    assert any("collapse alarm at step 2" in line for line in said)
    assert len(curve(tmp_path / "out")) == 2


def log(step: int, no_think: float, empty: float = 0.0) -> dict[str, Any]:
    return {"step": step, "policy/no_think": no_think, "modes/think/empty": empty}


@pytest.mark.parametrize(
    ("logs", "reason"),
    [
        ([log(s, 0.001) for s in range(11, 14)], "always thinks"),
        ([log(s, 0.999) for s in range(11, 14)], "never thinks"),
        ([log(s, 0.5, 0.9) for s in range(11, 14)], "thinking is empty"),
        ([log(s, 0.001) for s in range(1, 11)], None),  # within the grace
        ([log(11, 0.001), log(12, 0.2), log(13, 0.001)], None),  # not in a row
        ([log(11, 0.001), log(12, 0.001)], None),  # too few
    ],
)
def test_collapses_are_found(logs: list[dict[str, Any]], reason: str | None) -> None:
    found = CollapseAlarm(Alarm(grace=10, window=3), print).find_collapse(logs)
    assert found is None if reason is None else found is not None and reason in found


def test_progress_counts_from_the_resumed_step(tmp_path: Path) -> None:
    said: list[str] = []
    now = iter([100.0, 130.0])
    recorder = RunRecorder(tmp_path, said.append, lambda: next(now))
    logs = {"loss": 0.5, "reward": 0.25, "policy/no_think": None}
    state = SimpleNamespace(global_step=10, max_steps=16, is_world_process_zero=True, log_history=[])
    recorder.on_train_begin(None, state, None)
    state.global_step, state.log_history = 13, [logs]
    recorder.on_log(None, state, None)
    assert said == ["step 13/16 (81%)  loss 0.5  reward 0.25  10.0 s/step, 0 min left"]


def prepare(recipe: Recipe, resume: bool = False) -> Path | None:
    return prepare_folder(recipe, load_method(recipe.method), resume=resume)


def test_runs_are_started_or_resumed_by_what_the_folder_holds(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(RecipeError) as error:
        train("adaptthink", out, resume=True, **QUICK)
    assert error.value.code == "no_run"
    out.mkdir()
    (out / "recipe.json").write_text(json.dumps({"seed": 1}), "utf-8")
    with pytest.raises(RecipeError) as error:
        train("adaptthink", out, **QUICK)
    assert error.value.code == "run_exists"
    with refused(RecipeError, "recipe_changed"):
        train("adaptthink", out, resume=True, **QUICK)


def test_folders_with_other_files_are_refused_and_left_alone(tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "checkpoint-500").mkdir(parents=True)
    (out / "model").mkdir()
    for resume in (False, True):
        with refused(RecipeError, "out_occupied"):
            train("adaptthink", out, resume=resume, **QUICK)
    assert sorted(place.name for place in out.iterdir()) == ["checkpoint-500", "model"]
    (tmp_path / "file").touch()
    for path in (tmp_path / "file" / "out", Path("/proc/nowhere/out")):
        with pytest.raises(RecipeError) as error:
            prepare(make_recipe("adaptthink", path))
        assert error.value.code == "out_unusable"


def test_the_optimizer_may_change_until_training_starts(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert prepare(make_recipe("sft", out)) is None
    other = make_recipe("sft", out, optimizer={"learning_rate": 0.5})
    assert prepare(other, resume=True) is None
    assert json.loads((out / "recipe.json").read_text("utf-8"))["optimizer"]["learning_rate"] == 0.5
    with pytest.raises(RecipeError) as error:
        prepare(make_recipe("sft", out, optimizer={"dtype": "float32"}), resume=True)
    assert error.value.code == "recipe_changed" and "optimizer.dtype" in str(error.value)
    (out / "checkpoint-1").mkdir()
    (out / "checkpoint-1" / "complete.json").write_text("{}", "utf-8")
    with pytest.raises(RecipeError) as error:
        prepare(make_recipe("sft", out), resume=True)
    assert error.value.code == "recipe_changed" and "optimizer.learning_rate" in str(error.value)
    assert prepare(other, resume=True) == out / "checkpoint-1"
