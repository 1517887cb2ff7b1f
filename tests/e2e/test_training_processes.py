"""Several processes of one run: they divide sampling and training, with the results of a single process."""

from __future__ import annotations

import multiprocessing
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from tersely.io import CheckpointLogError
from tersely.training.config import RecipeError
from tersely.training.processes import rank0_only, resumable_map
from tersely.training.run import train as run
from tersely.training.training_run import MODEL

from ..support.forked import fork
from ..support.trainings import train, write_recipe
from ..support.vllm_server import free_port
from .test_training_methods import curve

ROWS = ["a", "b", "c", "d", "e", "f", "g"]
SFT: dict[str, Any] = {
    "data": {"questions": 6, "efforts": ["easy"]},
    "rollouts": {"batch": 4},
    "optimizer": {"micro_batch": 1},
    "sft": {"samples": 2},
}


def environment(process: int, count: int, port: int) -> dict[str, str]:
    """The environment variables that launchers set."""
    here = {"RANK": process, "LOCAL_RANK": process, "WORLD_SIZE": count, "MASTER_PORT": port}
    return {"MASTER_ADDR": "127.0.0.1", **{name: str(value) for name, value in here.items()}}


def together(work: Callable[[int], Any], count: int = 2) -> list[Any]:
    """The result of `work` in each of several processes, or the error that it raises."""

    def one(process: int, port: int, to: Any) -> None:
        from accelerate import PartialState
        from torch.distributed import GroupMember

        GroupMember.WORLD = None  # left in the parent by an earlier test's vLLM: a group of one
        os.environ.update(environment(process, count, port))
        PartialState._reset_state()
        try:
            to.send(work(process))
        except Exception as error:
            to.send(error)

    port, pipes = free_port(), [multiprocessing.Pipe(duplex=False) for _ in range(count)]
    running = [fork(one, i, port, to) for i, (_, to) in enumerate(pipes)]
    try:
        for source, _ in pipes:
            assert source.poll(300), "a process waits for another that is gone"
        return [source.recv() for source, _ in pipes]
    finally:
        for process in running:
            process.kill()
            process.join()


def pieces(path: Path, log: Path, **identity: Any) -> list[str]:
    """Rows in capitals, three at a time; log: which were made, by whom."""

    def make(part: Sequence[str], start: int) -> list[str]:
        with log.open("a") as file:
            file.write(f"{start} {os.getpid()}\n")
        return [row.upper() for row in part]

    return resumable_map(path, identity, ROWS, 3, make)


def test_chunks_are_divided_and_all_processes_get_all_results(tmp_path: Path) -> None:
    path, log = tmp_path / "traces.jsonl", tmp_path / "log"
    assert together(lambda process: pieces(path, log)) == [[row.upper() for row in ROWS]] * 2
    starts, makers = zip(*(line.split() for line in log.read_text().splitlines()), strict=True)
    assert sorted(starts) == ["0", "3", "6"] and len(set(makers)) == 2
    assert {file.name for file in tmp_path.glob("*.jsonl")} == {"traces.jsonl", "traces-1.jsonl"}


@pytest.mark.parametrize("count", [1, 2, 3])
def test_another_number_of_processes_resumes_with_the_missing_chunks(tmp_path: Path, count: int) -> None:
    path, log = tmp_path / "traces.jsonl", tmp_path / "log"
    together(lambda process: pieces(path, log))
    other = tmp_path / "traces-1.jsonl"
    other.write_bytes(other.read_bytes()[:-9])  # the last chunk was interrupted
    log.unlink()
    assert together(lambda process: pieces(path, log), count) == [[row.upper() for row in ROWS]] * count
    assert [line.split()[0] for line in log.read_text().splitlines()] == ["3"]
    with pytest.raises(CheckpointLogError):
        pieces(path, log, seed=1)


def test_rank0_only_shares_results_and_errors() -> None:
    assert together(lambda process: rank0_only(lambda: process)) == [0, 0]

    def refuse() -> None:
        raise RecipeError("already", code="run_exists")

    for found in together(lambda process: rank0_only(refuse)):
        assert isinstance(found, RecipeError) and "already" in str(found)


@pytest.mark.parametrize(
    ("variables", "values", "code"),
    [
        ({"WORLD_SIZE": "3"}, {}, "inconsistent_recipe"),
        ({"WORLD_SIZE": "2"}, {"rollouts": {"engine": "vllm"}}, "vllm_in_several_processes"),
        (
            {"WORLD_SIZE": "4"},
            {"rollouts": {"prompts": 6}, "optimizer": {"micro_batch": 2}},
            "inconsistent_recipe",
        ),
        ({"ACCELERATE_USE_FSDP": "true"}, {}, "sharded_model"),
        ({"ACCELERATE_USE_PARALLELISM_CONFIG": "true"}, {}, "sharded_model"),
        ({"ACCELERATE_MIXED_PRECISION": "bf16"}, {}, "launcher_precision"),
    ],
)
def test_unsupported_launches_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], values: dict[str, Any], code: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RecipeError) as error:
        train("sft", tmp_path / "out", **(values or SFT))
    assert error.value.code == code
    assert not (tmp_path / "out").exists()


SER: dict[str, Any] = {"rollouts": {"max_new_tokens": 70}, "optimizer": {"micro_batch": 2, "steps": 1}}


def learning(folder: Path) -> list[dict[str, float]]:
    return [{name: log[name] for name in ("loss", "grad_norm", "num_tokens")} for log in curve(folder)]


def test_two_processes_train_like_one_and_one_may_resume(tmp_path: Path) -> None:
    one, two, rewarded = tmp_path / "one", tmp_path / "two", tmp_path / "rewarded"
    said = train("sft", one, **SFT)
    configs = {"sft": write_recipe("sft", two, **SFT), "ser": write_recipe("ser", rewarded, **SER)}

    def work(process: int) -> list[str]:
        lines: list[str] = []
        for name, config in configs.items():
            run(name, config, log=lines.append)
        return lines

    spoken, unspoken = together(work)
    assert not unspoken
    alike = [line for line in said if line.startswith(("data:", "steps:", "learning"))]
    assert len(alike) == 3 and all(line in spoken for line in alike)
    assert spoken.count(f"wrote {two / MODEL}") == 1 and spoken[-1] == f"wrote {rewarded / MODEL}"
    assert (two / "traces-1.jsonl").exists()
    for mine, theirs in zip(learning(one), learning(two), strict=True):
        assert theirs == pytest.approx(mine, rel=1e-5)
    for log in curve(rewarded):
        assert log["modes/think/tokens"] > 0 and 0 <= log["policy/accuracy"] <= 1

    shutil.rmtree(two / "checkpoint-2")
    shutil.rmtree(two / MODEL)
    train("sft", two, resume=True, **SFT)
    whole, shared = (load_file(folder / MODEL / "model.safetensors") for folder in (one, two))
    assert all(abs(whole[name] - shared[name]).max() < 1e-6 for name in whole)
