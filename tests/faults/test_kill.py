"""kill -9 at random points: a command that is started again ends with what an uninterrupted run writes."""

from __future__ import annotations

import contextlib
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
import typer

from tersely.cli.app import main
from tersely.evaluation.bench.cli import bench
from tersely.probes.records import read_records

from ..e2e.test_bench_resume import options, without_seconds
from ..e2e.test_collect import command, write_task
from ..e2e.test_training_runs import QUICK, figures
from ..support.forked import fork
from ..support.trainings import train

PATIENCE, POINTS = 600.0, 20


def run_bench(folder: Path) -> None:
    with contextlib.suppress(typer.Exit):
        bench(**options(folder / "result.json"))


def run_collect(folder: Path) -> None:
    task = write_task(folder / "task.jsonl", 3)
    assert main(command(task, folder / "records", tiers="easy", batch_size=1, rollouts=2)) == 0


def run_quantize(folder: Path) -> None:
    arguments = ["tersely-tiny-small", str(folder / "model"), "--rows", "8", "--length", "32", "--group-size", "64"]
    assert main(["quantize", *arguments]) == 0


def run_train(folder: Path) -> None:
    train("adaptthink", folder / "run", resume=(folder / "run").exists(), **QUICK)


def read_collected(folder: Path) -> Any:
    table = read_records(folder / "records")
    return table.texts, {name: column.tobytes() for name, column in table.columns.items()}


def read_files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


COMMANDS: dict[str, tuple[Callable[[Path], None], Callable[[Path], Any]]] = {
    "bench": (run_bench, lambda folder: without_seconds(folder / "result.json")),
    "collect": (run_collect, read_collected),
    "quantize": (run_quantize, lambda folder: read_files(folder / "model")),
    "train": (run_train, lambda folder: (figures(folder / "run"), read_files(folder / "run" / "model"))),
}


def run_for(seconds: float, run: Callable[[Path], None], folder: Path) -> int | None:
    """Run in a copy of this process that is killed after so many seconds; its exit code."""
    process = fork(run, folder)
    process.join(seconds)
    process.kill()
    process.join()
    return process.exitcode


@pytest.mark.attack
@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_that_was_killed_ends_as_if_it_was_not(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run, read = COMMANDS[name]
    folders = [tmp_path / str(point) for point in range(POINTS + 1)]
    for folder in folders:
        folder.mkdir()
    run(tmp_path / "0")  # imports what the copies will have
    began = time.monotonic()
    (tmp_path / "again").mkdir()
    assert run_for(PATIENCE, run, tmp_path / "again") == 0
    seconds, rng = time.monotonic() - began, Random(name)
    whole = read(folders[0])
    assert read(tmp_path / "again") == whole
    for folder in folders[1:]:
        limit = rng.uniform(0, seconds)
        while run_for(limit, run, folder) != -signal.SIGKILL:  # it was faster this time
            shutil.rmtree(folder)
            folder.mkdir()
            limit /= 2
        assert run_for(PATIENCE, run, folder) == 0, capfd.readouterr()
        assert read(folder) == whole, folder
        assert {path.name for path in folder.iterdir()} == {path.name for path in folders[0].iterdir()}
    print(f"{name}: killed {POINTS} times within {seconds:.1f} s and resumed, with equal results")
