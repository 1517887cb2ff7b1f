"""An interrupted `tersely bench` resumes from its checkpoint log with the same result, and repeats no work."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import typer

from tersely.controller.options import GenerationOptions
from tersely.controller.trace import GenerationResult
from tersely.evaluation.bench.cli import bench
from tersely.evaluation.runner import SessionRunner
from tersely.io import CheckpointLogError

from ..support.forked import fork


class KilledError(Exception):
    """Simulates kill -9."""


def options(out: Path) -> dict[str, Any]:
    return {"limit": 4, "batch_size": 2, "max_new_tokens": 70, "out": out}


def killed_run(out: Path, pieces: int) -> list[str]:
    """Run the command until a number of pieces are done, kill it, and return the keys of its checkpoint log."""
    process = fork(bench, **options(out))
    log, deadline = out.with_name(f"{out.name}.journal"), time.monotonic() + 120
    while not (log.exists() and log.read_bytes().count(b"\n") > pieces):
        assert process.is_alive(), "ended before it was killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    process.join()
    return [json.loads(line)["key"] for line in log.read_bytes().split(b"\n")[1:-1]]


def without_seconds(path: Path) -> dict[str, Any]:
    result = json.loads(path.read_text(encoding="utf-8"))
    for arm in result["arms"]:
        del arm["seconds"]
    del result["command"]
    return result  # type: ignore[no-any-return]


def test_kill_9_and_the_same_command_give_the_same_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, ...]] = []
    answer = SessionRunner.answer

    def noted(self: SessionRunner, problems: Sequence[str], options: GenerationOptions) -> list[GenerationResult]:
        asked.append((*problems, repr(options)))
        return answer(self, problems, options)

    monkeypatch.setattr(SessionRunner, "answer", noted)
    whole, torn = tmp_path / "whole.json", tmp_path / "torn.json"
    with pytest.raises(typer.Exit):
        bench(**options(whole))
    everything = list(asked)
    done = killed_run(torn, pieces=3)
    asked.clear()
    with pytest.raises(typer.Exit):
        bench(**options(torn))
    assert without_seconds(torn) == without_seconds(whole)
    assert asked == everything[len(done) :], "finished pieces are not computed again"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["torn.json", "whole.json"]


def test_a_log_of_other_settings_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, left = tmp_path / "r.json", iter([1])
    answer = SessionRunner.answer

    def mortal(self: SessionRunner, problems: Sequence[str], options: GenerationOptions) -> list[GenerationResult]:
        if not next(left, 0):
            raise KilledError
        return answer(self, problems, options)

    monkeypatch.setattr(SessionRunner, "answer", mortal)
    with pytest.raises(KilledError):
        bench(**options(out))
    assert f"{out}.journal" in capsys.readouterr().err
    for changed in (
        {"limit": 3},
        {"seed": 1},
        {"margin": 0.02},
        {"arms": "full,fast"},
        {"model": "tersely-tiny-large"},
    ):
        with pytest.raises(CheckpointLogError) as e:
            bench(**{**options(out), **changed})
        assert e.value.code == "checkpoint_mismatch"
