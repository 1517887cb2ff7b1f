"""The checkpoint log: resuming, incomplete lines, files of other runs, and a full disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from tersely.controller.options import GenerationOptions
from tersely.controller.trace import GenerationResult
from tersely.io import CheckpointLog, CheckpointLogError, WriteError, announce_resume

from ...support.disk import files_no_longer_than
from ...support.scripted import ScriptedAnswers, make_bench, run_both

RUN = {"model": "m", "seed": 1}


class KilledError(Exception):
    """Simulates kill -9."""


class Mortal(ScriptedAnswers):
    """Dies after a number of batches."""

    def __init__(self, batches: int) -> None:
        super().__init__()
        self.left = batches

    def answer(self, problems: Sequence[str], options: GenerationOptions) -> list[GenerationResult]:
        if not self.left:
            raise KilledError
        self.left -= 1
        return super().answer(problems, options)


@pytest.mark.parametrize("batches", range(5))
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path, batches: int) -> None:
    path = tmp_path / "j"
    dead, alive, whole = Mortal(batches), ScriptedAnswers(), ScriptedAnswers()
    with pytest.raises(KilledError):
        run_both(make_bench(dead, 40, CheckpointLog(path, RUN)))
    resumed = run_both(make_bench(alive, 40, CheckpointLog(path, RUN)))
    expected = run_both(make_bench(whole, 40))
    assert [arm.rows for arm in resumed] == [arm.rows for arm in expected]
    assert [arm.engine_tokens for arm in resumed] == [arm.engine_tokens for arm in expected]
    assert dead.calls + alive.calls == whole.calls, "each question once, with the same seeds"


def test_an_incomplete_line_is_computed_again(tmp_path: Path) -> None:
    path = tmp_path / "j"
    log = CheckpointLog(path, RUN)
    for key in "ab":
        log.get_or_compute(key, lambda key=key: key.upper())  # type: ignore[misc]
    whole = path.read_bytes()
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        resumed = CheckpointLog(path, RUN)
        assert len(resumed.completed) == max(whole[:cut].count(b"\n") - 1, 0)
        for key in "ab":
            assert resumed.get_or_compute(key, lambda key=key: key.upper()) == key.upper()  # type: ignore[misc]
        assert path.read_bytes() == whole, cut


@pytest.mark.parametrize(
    ("content", "code", "detail"),
    [
        (b'{"run": {"model": "m", "seed": 2}}\n', "checkpoint_mismatch", "seed was 2, now 1"),
        (b'{"run": {"model": "m", "seed": 1, "more": 0}}\n', "checkpoint_mismatch", "more was 0, now null"),
        (b'{"run": {"model": "m", "seed": 2, "arms": ["5f"]}}\n', "checkpoint_mismatch", "(seed was 2, now 1)"),
        (b'{"run": {"model": "m", "seed": 1, "arms": ["5f"]}}\n', "checkpoint_mismatch", "(other arms)"),
        (b'{"run": {"model": "m", "seed": 1}}\nrubbish\n', "checkpoint_invalid", "line 2"),
        (b"my shopping list\n", "checkpoint_invalid", "line 1"),
        (b"my shopping list", "checkpoint_invalid", ""),
        (b"\xff\xfe\n", "checkpoint_invalid", "line 1"),
    ],
)
def test_files_of_other_runs_are_refused_and_left_alone(tmp_path: Path, content: bytes, code: str, detail: str) -> None:
    path = tmp_path / "j"
    path.write_bytes(content)
    with pytest.raises(CheckpointLogError) as e:
        CheckpointLog(path, RUN)
    assert e.value.code == code and detail in str(e.value)
    assert path.read_bytes() == content


def test_a_full_disk_loses_no_finished_piece(tmp_path: Path) -> None:
    path = tmp_path / "j"
    CheckpointLog(path, RUN).get_or_compute("a", lambda: 1)
    before = path.read_bytes()
    with files_no_longer_than(len(before) + 20), pytest.raises(WriteError):
        CheckpointLog(path, RUN).get_or_compute("b", lambda: "x" * 100)
    assert path.read_bytes() == before
    again = CheckpointLog(path, RUN)
    assert again.get_or_compute("a", lambda: pytest.fail("was already computed")) == 1
    assert again.get_or_compute("b", lambda: 2) == 2


@pytest.mark.parametrize(("place", "kept", "said"), [("j", 1, "same command"), (None, 1, "--out"), ("j", 0, "")])
def test_an_interrupted_run_says_how_it_resumes(
    place: str | None, kept: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(KeyboardInterrupt), announce_resume(Path(place) if place else None, lambda: kept):
        raise KeyboardInterrupt
    assert said in (message := capsys.readouterr().err) and bool(message) == bool(said)
