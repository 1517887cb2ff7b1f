"""`tersely bench` on the command line: numbers out of range, and markers."""

from __future__ import annotations

from pathlib import Path

import pytest

from tersely.cli.app import main
from tersely.controller.text.markers import Markers
from tersely.evaluation import cli_utils
from tersely.evaluation.runner import load_runner

from ..support.commands import refused


@pytest.mark.parametrize(("option", "value"), [("--rollouts", 0), ("--batch-size", 0), ("--margin", 1.5)])
def test_numbers_out_of_range_are_refused(option: str, value: float, capsys: pytest.CaptureFixture[str]) -> None:
    assert option in refused(capsys, "bench", option, value)


@pytest.mark.parametrize("command", ["bench", "collect --out data", "tune --out config.json"])
def test_markers_are_checked_before_a_model_is_loaded(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*command.split(), "--markers", "<think>"]) == 2
    assert "OPEN,CLOSE" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "command", ["bench --out", "tune --out", "agents tersely-tiny-agent --out", "agents tersely-tiny-agent --keep"]
)
def test_a_file_of_another_kind_is_kept(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    questions = tmp_path / "q.jsonl"
    questions.write_text(content := '{"question": "What is 3 + 4?", "answer": "7"}\n')
    assert "was not written by tersely" in refused(capsys, *command.split(), questions)
    assert questions.read_text() == content


def test_a_redirected_log_shows_progress(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(cli_utils, "LOG_SECONDS", 0)
    with cli_utils.show_progress(8) as advance:
        assert capsys.readouterr().err.startswith("running")
        advance("full", 2)
    assert capsys.readouterr().err == "25% full\n"


def test_given_markers_reach_the_session() -> None:
    runner = load_runner("tersely-tiny-small", "transformers", markers="<a>,</a>")
    assert runner.session.markers == Markers("<a>", "</a>")
