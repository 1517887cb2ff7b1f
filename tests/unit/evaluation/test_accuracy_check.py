"""`tersely quantize --task`: accuracy before and after, also if the run is interrupted in between."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from tersely.cli.app import main
from tersely.errors import OptionError, PromptError
from tersely.evaluation.accuracy_check import AccuracyCheck
from tersely.kernels.quantization import Scheme
from tersely.kernels.quantization import run as module_of_run
from tersely.kernels.quantization.calibration_text import CalibrationText
from tersely.kernels.quantization.run import REPORT, quantize_into
from tersely.models import get_model_path

SMALL = get_model_path("tersely-tiny-small")
ROWS = ("--rows", "8", "--length", "32", "--group-size", "64")
TEXT = CalibrationText(rows=8, length=32)


def command(out: Path, *arguments: object) -> int:
    return main(["quantize", "tersely-tiny-small", str(out), *ROWS, *map(str, arguments)])


def test_accuracy_is_measured_before_and_after(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(tmp_path / "a", "--task", "tiny", "--limit", 8, "--max-tokens", 96) == 0
    report, shown = json.loads((tmp_path / "a" / REPORT).read_text()), capsys.readouterr().out
    task, change = report["task"], report["task"]["change"]
    assert (task["name"], task["questions"], task["tokens"]) == ("tiny", 8, 96)
    assert task["right"]["before"] > 0 and change[0] == task["right"]["after"] - task["right"]["before"]
    assert change[1] <= change[0] <= change[2]
    assert f"right       {task['right']['before']:.1%} -> " in shown and "of 8 questions of tiny" in shown
    assert 0 < report["divergence"] < 0.1 and f"divergence  {report['divergence']:.4f} nats" in shown


class Scripted:
    """A check that passes before and fails after, and records its runs."""

    def __init__(self, digest: str = "a") -> None:
        self.digest = digest
        self.runs: list[str] = []

    def check(self, model: Any, tokenizer: Any) -> None:
        assert type(model.lm_head).__name__ == "Linear"

    def run(self, model: Any, tokenizer: Any) -> list[bool]:
        self.runs.append(type(model.model.layers[0].mlp.up_proj).__name__)
        return [self.runs[-1] == "Linear"] * 2

    def compare(self, before: Any, after: Any) -> dict[str, Any]:
        return {"before": list(before), "after": list(after)}


def test_a_resumed_run_repeats_no_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, out = module_of_run._save, tmp_path / "out"

    def killed(*arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module_of_run, "_save", killed)
    first, second, other = Scripted(), Scripted(), Scripted("b")
    with pytest.raises(KeyboardInterrupt):
        quantize_into(str(SMALL), out, Scheme(64), TEXT, exam=first)
    assert first.runs == ["Linear", "W4A8Linear"]
    layers = {file: file.stat().st_mtime_ns for file in (tmp_path / "out.part").glob("model.*")}
    with pytest.raises(KeyboardInterrupt):
        quantize_into(str(SMALL), out, Scheme(64), TEXT, exam=other)
    assert other.runs == first.runs, "other questions are another check"
    assert len(layers) == 28 and all(file.stat().st_mtime_ns == when for file, when in layers.items()), (
        "no layer is computed again"
    )
    monkeypatch.setattr(module_of_run, "_save", real)
    report = quantize_into(str(SMALL), out, Scheme(64), TEXT, exam=second)
    assert second.runs == [] and report["task"] == {"before": [True] * 2, "after": [False] * 2}


def test_refused_arguments_leave_nothing_behind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "long.jsonl"
    file.write_text(json.dumps({"id": "a", "problem": "Kai has 3 shells. " * 2000, "answer": "3"}))
    for arguments, shown in (
        (("--task", file), "tokens"),
        (("--task", "tinny"), "'tinny'"),
        (("--limit", 4), "--task"),
    ):
        assert command(tmp_path / "out", *arguments) == 2
        assert shown in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["long.jsonl"]


def test_digest_and_checks_before_the_run() -> None:
    check, few = AccuracyCheck.load("tiny", 4, 60), AccuracyCheck.load("tiny", 3, 60)
    assert len({check.digest, few.digest, AccuracyCheck.load("tiny", 4, 50).digest}) == 3
    assert check.digest == AccuracyCheck.load("tiny", 4, 60).digest
    model, tokenizer = AutoModelForCausalLM.from_pretrained(SMALL).eval(), AutoTokenizer.from_pretrained(SMALL)
    tokenizer.chat_template = "{{ raise_exception('only with a system prompt') }}"
    with pytest.raises(OptionError, match="only with a system prompt"):
        check.check(model, tokenizer)
    tokenizer.chat_template = None
    check.check(model, tokenizer)
    model.config.max_position_embeddings = 4
    with pytest.raises(PromptError, match=r"\b4\b"):
        check.check(model, tokenizer)
