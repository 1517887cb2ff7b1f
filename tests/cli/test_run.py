"""`tersely run` and its neighbours, in this process where a start of Python would teach nothing more."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from tersely.cli.app import main
from tersely.controller.engines import EngineWrapper
from tersely.controller.types import Completion, Engine, Request, SamplingParams, TokenSink
from tersely.models import get_model_path

from ..support.forked import fork_command

QUESTION = "Mia has 4 shells. Mia finds 3 shells. How many shells does Mia have now?"
CUT = ("--policy", "budget", "--max-new-tokens", "100")
"""Leaves 36 tokens of thinking, less than the embedded model ever uses."""

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def _needs_model(request: pytest.FixtureRequest) -> None:
    if "cli" in request.fixturenames and not get_model_path("tersely-tiny-small").is_dir():
        pytest.skip("the embedded model is not there yet")


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    def call(*arguments: str) -> tuple[int, str, str]:
        code = main(arguments)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def as_object(cli: Cli, *arguments: str) -> dict[str, Any]:
    code, out, err = cli("run", QUESTION, "--json", *arguments)
    assert (code, err) == (0, "")
    assert out.count("\n") == 1
    found: dict[str, Any] = json.loads(out)
    return found


def test_thinking_cut_answer_and_comparison_follow_each_other(cli: Cli) -> None:
    code, out, err = cli("run", QUESTION, *CUT)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "[thinking]"
    cut = next(i for i, line in enumerate(lines) if line.startswith("◆ budget: "))
    assert "36 thinking tokens" in lines[cut]
    assert lines[cut].endswith("→ Time is short, so I answer now.")
    assert "[answer]" in lines[cut:]
    assert lines[-1].startswith("uncontrolled: ")
    assert " tokens instead of " in lines[-1]
    assert "\x1b" not in out
    assert "think>" not in out


def test_no_compare_leaves_the_last_line_out(cli: Cli) -> None:
    assert "uncontrolled" not in cli("run", QUESTION, *CUT, "--no-compare")[1]


def test_json_is_one_object_with_usage_and_decisions(cli: Cli) -> None:
    found = as_object(cli, *CUT)
    assert set(found) == {"answer", "text", "thinking", "tier", "finish_reason", "usage", "decisions"}
    usage = found["usage"]
    assert usage["total"] == usage["thinking"] + usage["answer"] + usage["overhead"]
    assert usage["thinking"] <= 36
    assert 0 < usage["injected"] < usage["thinking"] + 4
    [decision] = found["decisions"]
    assert (decision["policy"], decision["action"], decision["acted"]) == ("budget", "close", True)
    assert decision["reason"]
    assert decision["position"] > 0


def test_json_compares_when_asked(cli: Cli) -> None:
    found = as_object(cli, *CUT, "--compare")
    assert found["uncontrolled"] == as_object(cli, "--preset", "off", *CUT[2:])


def test_quiet_prints_the_answer_only(cli: Cli) -> None:
    _, out, err = cli("run", QUESTION, "--quiet", *CUT)
    assert (out.count("\n"), err) == (1, "")
    assert "think" not in out
    assert "uncontrolled" not in out


def test_shadow_changes_no_token_and_tells_what_it_would_do(cli: Cli) -> None:
    off, shadow = as_object(cli, "--preset", "off", *CUT[2:]), as_object(cli, *CUT, "--shadow")
    assert off["text"] == shadow["text"]
    assert [d["acted"] for d in shadow["decisions"]] == [False]
    assert shadow["usage"]["injected"] == 0
    _, out, _ = cli("run", QUESTION, "--shadow", *CUT, "--no-compare")
    assert "◆ shadow: at " in out


def test_a_policy_replaces_the_preset(cli: Cli) -> None:
    found = as_object(cli, "--preset", "balanced", "--policy", "hint", "--max-new-tokens", "400")
    assert {d["policy"] for d in found["decisions"]} == {"hint"}
    assert "[Be concise.]" in found["thinking"]


def test_effort_none_answers_at_once(cli: Cli) -> None:
    found = as_object(cli, "--effort", "none")
    assert (found["tier"], found["thinking"], found["usage"]["thinking"]) == ("none", "", 0)


def test_greedy_needs_no_seed(cli: Cli) -> None:
    greedy = (*CUT, "--temperature", "0", "--seed")
    assert as_object(cli, *greedy, "1") == as_object(cli, *greedy, "2")


def test_the_prompt_comes_from_standard_input(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = cli("run", QUESTION, "-q", "--effort", "none")[1]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(QUESTION.encode()), encoding="ascii"))
    assert cli("run", "-", "-q", "--effort", "none")[1] == wanted


def test_the_token_limit_without_an_answer_is_said(cli: Cli) -> None:
    _, out, _ = cli(
        "run", QUESTION, "--preset", "off", "--max-new-tokens", "8", "--answer-reserve", "2", "--no-compare"
    )
    assert "◆ no answer: the token limit" in out


class _Interrupted(EngineWrapper):
    """An engine during which someone presses Ctrl-C after some tokens."""

    def __init__(self, engine: Engine, after: int) -> None:
        super().__init__(engine)
        self.left = after

    def generate(
        self, requests: Sequence[Request], sampling: SamplingParams, sink: TokenSink | None = None
    ) -> list[Completion]:
        def count(row: int, tokens: Sequence[int], forced: bool) -> None:
            assert sink is not None
            sink(row, tokens, forced)
            self.left -= 1
            if not self.left:
                raise KeyboardInterrupt

        return self.engine.generate(requests, sampling, count)


def test_an_interrupted_json_run_still_prints_its_object(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    from tersely.controller.engines.transformers.engine import load_engine

    whole = as_object(cli, *CUT)
    engine = _Interrupted(load_engine("tersely-tiny-small"), 9)
    monkeypatch.setattr("tersely.cli.run.load", lambda source: engine)
    code, out, err = cli("run", QUESTION, "--json", "--compare", *CUT)
    assert (code, err) == (130, "interrupted\n")
    found = json.loads(out)
    assert found["finish_reason"] == "interrupted"
    assert whole["text"].startswith(found["text"])
    assert found["usage"]["total"] == 9
    assert "uncontrolled" not in found


def _process(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tersely.cli", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        env={**os.environ, "PYTHONSAFEPATH": "1", "PYTHONIOENCODING": "utf-8", "OMP_NUM_THREADS": "1"},
        # A shell that runs the tests in the background has its children ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


@pytest.mark.parametrize("start", [fork_command, pytest.param(_process, marks=pytest.mark.attack)])
def test_ctrl_c_and_a_closed_pipe_end_quietly(cli: Cli, start: Callable[..., subprocess.Popen[str]]) -> None:
    # The reader that leaves is that of a command that starts quickly.
    with start("run", QUESTION, "--preset", "off") as stopped, _process("tasks") as unread:
        assert stopped.stdout is not None
        assert unread.stdout is not None
        assert unread.stderr is not None
        unread.stdout.close()
        shown = stopped.stdout.readline()
        assert shown == "[thinking]\n"
        stopped.send_signal(signal.SIGINT)
        out, err = stopped.communicate(timeout=180)
        assert (stopped.returncode, err) == (130, "interrupted\n")
        assert (shown + out).endswith("\n")
        assert unread.stderr.read() == ""
        assert unread.wait(180) == 141


def test_help_and_tasks_import_no_model_library() -> None:
    code = (
        "import sys; from tersely.cli.app import main\n"
        "for arguments in (['--help'], ['run', '--help'], ['--version'], ['tasks', '--limit', '1']):\n"
        "    assert main(arguments) == 0\n"
        "assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-P", "-c", code], check=True, stdout=subprocess.DEVNULL, timeout=180)


def test_tasks_shows_what_was_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tasks", "--level", "2", "--kind", "expr", "--limit", "3", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["level"], row["kind"]) for row in rows] == [(2, "expr")] * 3
    assert main(["tasks", "--level", "2", "--kind", "expr", "--limit", "3"]) == 0
    plain = capsys.readouterr().out
    assert all(row["problem"] in plain and f"answer: {row['answer']}" in plain for row in rows)
