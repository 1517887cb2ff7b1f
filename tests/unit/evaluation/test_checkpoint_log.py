"""A benchmark that was killed goes on where it was, ends as if nothing had happened, and asks nothing twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import typer

from tersely.controller.options import GenerationOptions
from tersely.controller.trace import GenerationResult
from tersely.errors import TerselyError
from tersely.evaluation.bench.checkpoint_log import CheckpointLog, CheckpointLogError
from tersely.evaluation.bench.cli import bench
from tersely.evaluation.runner import SessionRunner
from tersely.io import WriteError

from ...support.disk import files_no_longer_than
from ...support.scripted import ScriptedAnswers, bench_of, run_both

RUN = {"model": "m", "seed": 1}


class KilledError(Exception):
    """Stands for kill -9 in one process."""


class Mortal(ScriptedAnswers):
    """Dies after so many batches."""

    def __init__(self, batches: int) -> None:
        super().__init__()
        self.left = batches

    def answer(self, problems: Sequence[str], options: GenerationOptions) -> list[GenerationResult]:
        if not self.left:
            raise KilledError
        self.left -= 1
        return super().answer(problems, options)


@pytest.mark.parametrize("batches", range(5))
def test_a_run_that_died_anywhere_ends_as_one_that_did_not(tmp_path: Path, batches: int) -> None:
    path = tmp_path / "j"
    dead, alive, whole = Mortal(batches), ScriptedAnswers(), ScriptedAnswers()
    with pytest.raises(KilledError):
        run_both(bench_of(dead, 40, CheckpointLog(path, RUN)))
    resumed = run_both(bench_of(alive, 40, CheckpointLog(path, RUN)))
    expected = run_both(bench_of(whole, 40))
    assert [arm.rows for arm in resumed] == [arm.rows for arm in expected]
    assert [arm.made for arm in resumed] == [arm.made for arm in expected]
    assert dead.calls + alive.calls == whole.calls, "each question once, with the same seeds"


def test_a_line_torn_by_a_crash_is_done_again(tmp_path: Path) -> None:
    path = tmp_path / "j"
    journal = CheckpointLog(path, RUN)
    for key in "ab":
        journal.piece(key, lambda key=key: key.upper())  # type: ignore[misc]
    whole = path.read_bytes()
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        done = CheckpointLog(path, RUN)
        assert len(done.done) == max(whole[:cut].count(b"\n") - 1, 0)
        for key in "ab":
            assert done.piece(key, lambda key=key: key.upper()) == key.upper()  # type: ignore[misc]
        assert path.read_bytes() == whole, cut


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b'{"run": {"model": "m", "seed": 2}}\n', "another run (seed was 2 and is 1)"),
        (b'{"run": {"model": "m", "seed": 1, "more": 0}}\n', "another run (more was 0 and is null)"),
        (b'{"run": {"model": "m", "seed": 1}}\nrubbish\n', "line 2: not a line of a journal"),
        (b"my shopping list\n", "line 1: not a line of a journal"),
        (b"my shopping list", "is not a journal"),
        (b"\xff\xfe\n", "line 1: not a line of a journal"),
    ],
)
def test_what_does_not_belong_to_this_run_is_refused_and_left_alone(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "j"
    path.write_bytes(content)
    with pytest.raises(CheckpointLogError) as refused:
        CheckpointLog(path, RUN)
    assert says in str(refused.value)
    assert path.read_bytes() == content


def test_a_full_disk_loses_nothing_that_was_done(tmp_path: Path) -> None:
    path = tmp_path / "j"
    CheckpointLog(path, RUN).piece("a", lambda: 1)
    before = path.read_bytes()
    with files_no_longer_than(len(before) + 20), pytest.raises(WriteError, match="make room"):
        CheckpointLog(path, RUN).piece("b", lambda: "x" * 100)
    assert path.read_bytes() == before
    again = CheckpointLog(path, RUN)
    assert again.piece("a", lambda: pytest.fail("was done")) == 1
    assert again.piece("b", lambda: 2) == 2


# -- with a model --------------------------------------------------------------------------------------------------

WORDS = ["--limit", "4", "--batch", "2", "--max-new-tokens", "150"]


def options(out: Path) -> dict[str, Any]:
    return {"limit": 4, "batch": 2, "max_new_tokens": 150, "out": out}


def killed_run(out: Path, pieces: int) -> list[str]:
    """Run the command until so many pieces are done, kill it with no warning, and return the keys of its journal."""
    command = [str(Path(sys.executable).with_name("tersely")), "bench", *WORDS, "--out", str(out)]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, **quiet)  # type: ignore[call-overload]
    journal, deadline = out.with_name(f"{out.name}.journal"), time.monotonic() + 120
    while not (journal.exists() and journal.read_bytes().count(b"\n") > pieces):
        assert process.poll() is None, "ended before it was killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    return [json.loads(line)["key"] for line in journal.read_bytes().split(b"\n")[1:-1]]


def without_seconds(path: Path) -> dict[str, Any]:
    result = json.loads(path.read_text(encoding="utf-8"))
    for arm in result["arms"]:
        del arm["seconds"]
    del result["command"]
    return result  # type: ignore[no-any-return]


def test_kill_9_and_the_same_command_give_the_result_of_one_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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
    assert asked == everything[len(done) :], "what stands in the journal is not asked again"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["torn.json", "whole.json"]


def test_a_journal_of_other_settings_is_not_mixed_in(
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
    assert f"the same command goes on from {out}.journal" in capsys.readouterr().err
    for changed in (
        {"limit": 3},
        {"seed": 1},
        {"margin": 0.02},
        {"arms": "full,fast"},
        {"model": "tersely-tiny-large"},
    ):
        with pytest.raises(TerselyError, match="belongs to another run"):
            bench(**{**options(out), **changed})
