"""`tersely doctor`: all is well with the embedded model, and what is broken is named with a remedy."""

from __future__ import annotations

import json
from importlib import metadata
from typing import Any

import pytest

from tersely.cli import doctor as checks
from tersely.cli.app import main
from tersely.cli.doctor import DoctorCheck
from tersely.controller.trace import Decision, GenerationResult, Span, Usage
from tersely.models import get_model_path


def report(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any]]:
    code = main(["doctor", "--json", *arguments])
    found = json.loads(capsys.readouterr().out)
    assert found["ok"] == (code == 0)
    return code, {check["name"]: check for check in found["checks"]}


@pytest.fixture
def _model() -> None:
    if not get_model_path("tersely-tiny-small").is_dir():
        pytest.skip("the embedded model is not there yet")


@pytest.mark.usefixtures("_model")
def test_the_embedded_model_passes(capsys: pytest.CaptureFixture[str]) -> None:
    code, found = report(capsys)
    assert code == 0
    assert {name: check["status"] for name, check in found.items() if check["status"] != "ok"} == {}
    assert found["markers"]["detail"] == "<think> ... </think> (tokenizer)"
    assert found["context"]["detail"] == "4096 tokens"
    assert found["chat template"]["detail"] == "supports efforts"
    assert "identical" in found["off"]["detail"]
    assert "forced at" in found["cut"]["detail"]
    assert found["torch"]["detail"] == metadata.version("torch")


@pytest.mark.usefixtures("_model")
def test_the_table_has_a_line_for_each_check(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "_plain_generate", lambda engine, ids: (1, 2, 3))
    assert main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "ok    markers" in out
    assert "fail  off" in out
    assert "differs from model.generate at token 0" in out


def test_a_model_that_does_not_load_ends_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    code, found = report(capsys, "--model", "/nowhere/at/all")
    assert code == 1
    assert list(found)[-1] == "model"
    assert found["model"]["status"] == "fail"
    assert "embedded model" in found["model"]["remedy"]


def test_missing_and_foreign_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"torch": "1.0", "trl": "0.20"}
    monkeypatch.setattr(checks, "find_version", lambda name, *_: versions.get(name))
    found = {check.name: check for check in checks._versions()}
    assert found["torch"].status == "warn"
    assert "pip install 'torch" in found["torch"].remedy
    assert found["transformers"].status == "fail"
    assert found["trl"] == DoctorCheck("trl", "ok", "0.20")
    assert found["vllm"].status == "ok"
    assert "not installed" in found["vllm"].detail


def cut(text: str, answer: int, *, fired: bool = True, forced: str = "") -> DoctorCheck:
    trace = (Decision("budget", "close", "used up", 9),) if fired else ()
    spans = (Span("sampled", text), Span("forced", forced))
    done = GenerationResult(text, "", "", "stop", "normal", Usage(thinking=9, answer=answer), trace, spans)
    return checks._judge_cut(done, "</think>")


def test_a_cut_must_reach_the_output_and_be_followed_by_an_answer() -> None:
    assert cut("a</think>b", 3, forced="</think>").status == "ok"
    assert cut("a</think>b", 0, forced="</think>").status == "fail"
    assert cut("a b", 3, forced="").status == "fail"
    assert cut("a</think>b", 3, fired=False).status == "ok"
    assert cut("a b", 3, fired=False).status == "warn"


def test_an_unexpected_exception_is_reported_not_raised() -> None:
    failed = checks._failed("off", RuntimeError())
    assert (failed.status, failed.detail) == ("fail", "RuntimeError: RuntimeError")
