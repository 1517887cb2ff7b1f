"""`tersely agents` on an embedded model, in the modes that need no tools, and its refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("langchain")

from tersely.cli.app import main

MODEL = "tersely-tiny-small"
ARGUMENTS = ["agents", MODEL, "--kinds", "instant,reasoning", "--arms", "reasoning,instant"]


def test_arms_are_run_and_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.json"
    kept = tmp_path / "kept.jsonl"
    options = ["--limit", "2", "--price", "claude-haiku-4-5", "--out", str(out), "--keep", str(kept)]
    assert main([*ARGUMENTS, *options, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report == json.loads(out.read_text()) and not list(tmp_path.glob("*.journal"))
    assert (report["kept"], kept.read_text()) == (0, ""), "these tasks have no pages"
    reasoning, instant = report["arms"]
    assert reasoning["kinds"]["instant"]["solved"] >= 0.8 and instant["kinds"]["instant"]["solved"] >= 0.6
    assert instant["kinds"]["reasoning"]["solved"] <= 0.2 < reasoning["kinds"]["reasoning"]["solved"]
    assert instant["kinds"]["instant"]["usd_per_solved"] < reasoning["kinds"]["instant"]["usd_per_solved"]
    assert [e["mode"] for e in report["episodes"]["instant"]] == ["instant"] * 2
    assert main([*ARGUMENTS[:-2], "--arms", "reasoning,reasoning+balanced", "--limit", "1"]) == 0
    printed = capsys.readouterr().out
    assert "reasoning+balanced, by kind" in printed
    header, *rows = printed.splitlines()[:3]
    end = header.index("written") + len("written")
    plain, ended = (float(row[:end].split()[-1]) for row in rows)
    assert ended < plain


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["--arms", "always-think,agentik"], "'agentic'"),
        (["--arms", "agentic,agentic"], "'agentic,agentic'"),
        (["--arms", "agentic,agentic+balancd"], "'balanced'"),
        (["--arms", "agentic+balanced", "--url", "http://127.0.0.1:1/v1"], "--url"),
        (["--kinds", "lookups"], "'lookup'"),
        (["--arms", "routed"], "tersely agents --router-out"),
        (["--split", "tests"], "'test'"),
        (["--arms", "agentic,instant", "--router-out", "r"], "add reasoning to --arms"),
        (["--limit", "3"], "tools"),
        (["--out", "/nowhere/x.json"], "/nowhere/x.json"),
        (["--keep", "/nowhere/x.jsonl"], "--keep /nowhere/x.jsonl"),
        (["--price", "nobody"], "'nobody'"),
        (["--url", "http://127.0.0.1:1/v1", "--arms", "routed", "--router", "r"], "router"),
    ],
)
def test_bad_arguments_are_refused(arguments: list[str], shown: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["agents", MODEL, *arguments]) == 2
    error = capsys.readouterr().err
    assert error.splitlines()[-1].startswith("error: ") and shown in error
