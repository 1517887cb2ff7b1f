"""`tersely quantize --tasks`: right answers before and after, also where a run was killed in between."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from tersely.cli.app import main
from tersely.errors import OptionError, PromptError
from tersely.evaluation.runner import AccuracyCheck
from tersely.kernels.quantization import Scheme
from tersely.kernels.quantization import run as module_of_run
from tersely.kernels.quantization.calibration import CalibrationText
from tersely.kernels.quantization.run import REPORT, quantize_checkpoint
from tersely.models import get_model_path

from ...support.refusals import refused

SMALL = get_model_path("tersely-tiny-small")
ROWS = ("--rows", "8", "--length", "32", "--group-size", "64")
TEXT = CalibrationText(rows=8, length=32)


def command(out: Path, *arguments: object) -> int:
    return main(["quantize", "tersely-tiny-small", str(out), *ROWS, *map(str, arguments)])


@pytest.mark.slow
def test_questions_are_asked_before_and_after(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(tmp_path / "a", "--tasks", "tiny", "--limit", 4, "--max-new-tokens", 96) == 0
    report, shown = json.loads((tmp_path / "a" / REPORT).read_text()), capsys.readouterr().out
    task, change = report["task"], report["task"]["change"]
    assert (task["name"], task["questions"], task["tokens"]) == ("tiny", 4, 96)
    assert task["right"]["before"] > 0 and change[0] == task["right"]["after"] - task["right"]["before"]
    assert change[1] <= change[0] <= change[2]
    assert f"accuracy    {task['right']['before']:.1%} -> " in shown and "on 4 questions of tiny" in shown
    assert 0 < report["divergence"] < 0.1 and f"divergence  {report['divergence']:.4f} nats" in shown


class Scripted:
    """Gets everything right before and nothing after, and counts how often it is taken."""

    def __init__(self, digest: str = "a") -> None:
        self.digest = digest
        self.taken: list[str] = []

    def check(self, model: Any, tokenizer: Any) -> None:
        assert type(model.lm_head).__name__ == "Linear"

    def run(self, model: Any, tokenizer: Any) -> list[bool]:
        self.taken.append(type(model.model.layers[0].mlp.up_proj).__name__)
        return [self.taken[-1] == "Linear"] * 2

    def compare(self, before: Any, after: Any) -> dict[str, Any]:
        return {"before": list(before), "after": list(after)}


def quantize(out: Path, test: Scripted) -> dict[str, Any]:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(SMALL), AutoTokenizer.from_pretrained(SMALL)
    return quantize_checkpoint(model, tokenizer, "small", out, Scheme(64), TEXT, test=test)


@pytest.mark.slow
def test_a_killed_run_asks_no_question_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, out = module_of_run._save, tmp_path / "out"

    def killed(*arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module_of_run, "_save", killed)
    first, second, other = Scripted(), Scripted(), Scripted("b")
    with pytest.raises(KeyboardInterrupt):
        quantize(out, first)
    assert first.taken == ["Linear", "W4A8Linear"]
    layers = {file: file.stat().st_mtime_ns for file in (tmp_path / "out.layers").glob("model.*")}
    with pytest.raises(KeyboardInterrupt):
        quantize(out, other)
    assert other.taken == first.taken, "other questions are asked"
    assert len(layers) == 28 and all(file.stat().st_mtime_ns == when for file, when in layers.items()), "no layer anew"
    monkeypatch.setattr(module_of_run, "_save", real)
    report = quantize(out, second)
    assert second.taken == [] and report["task"] == {"before": [True] * 2, "after": [False] * 2}


def test_what_cannot_be_asked_leaves_nothing_behind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "long.jsonl"
    file.write_text(json.dumps({"id": "a", "problem": "Kai has 3 shells. " * 2000, "answer": "3"}))
    for arguments, value in (
        (("--tasks", file), "tokens"),
        (("--tasks", "tinny"), "'tinny'"),
        (("--limit", 4), "--tasks"),
    ):
        assert command(tmp_path / "out", *arguments) == 2
        assert value in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["long.jsonl"]


def test_questions_count_with_their_answers_and_the_limit() -> None:
    exam, few = AccuracyCheck.load("tiny", 4, 60), AccuracyCheck.load("tiny", 3, 60)
    assert len({exam.digest, few.digest, AccuracyCheck.load("tiny", 4, 50).digest}) == 3
    assert exam.digest == AccuracyCheck.load("tiny", 4, 60).digest
    model, tokenizer = AutoModelForCausalLM.from_pretrained(SMALL).eval(), AutoTokenizer.from_pretrained(SMALL)
    tokenizer.chat_template = "{{ raise_exception('only with a system prompt') }}"
    with refused(OptionError, "chat_template_failed"):
        exam.check(model, tokenizer)
    tokenizer.chat_template = None
    exam.check(model, tokenizer)
    model.config.max_position_embeddings = 4
    with pytest.raises(PromptError):
        exam.check(model, tokenizer)
