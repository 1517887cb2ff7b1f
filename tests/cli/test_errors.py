"""Bad input: one line on stderr that says what to do, exit code 2, nothing on stdout, no traceback."""

from __future__ import annotations

import io
import json
import shutil
import sys
from pathlib import Path

import pytest

from tersely.cli.app import main
from tersely.models import get_model_path

from ..support.commands import refused

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{{ '<|im_start|>assistant\n' }}"
)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["rnu", "hi"], "Did you mean 'run'"),
        (["run", "hi", "--modle", "x"], "--model"),
        (["run"], "PROMPT"),
        (["run", "  "], "the prompt is empty"),
        (["run", "caf\udce9"], "the prompt is not UTF-8 (byte 3)"),
        (["run", "hi", "--effort", "hrad"], "did you mean 'hard'?"),
        (["run", "hi", "--preset", "balance"], "did you mean 'balanced'?"),
        (["run", "hi", "--policy", "convergenec"], "did you mean 'convergence'?"),
        (["run", "hi", "--policy", "budget", "--policy", "budget"], "each at most once"),
        (["run", "hi", "--engine", "vlm"], "did you mean 'vllm'"),
        (["run", "hi", "--engine", "transformer"], "did you mean 'transformers'?"),
        (["run", "hi", "--max-new-tokens", "64"], "raise max_new_tokens or lower answer_reserve"),
        (["run", "hi", "--max-new-tokens", "0"], "--max-new-tokens"),
        (["run", "hi", "--max-new-tokens", "many"], "--max-new-tokens"),
        (["run", "hi", "--answer-reserve", "-1"], "--answer-reserve"),
        (["run", "hi", "--temperature", "-1"], "--temperature"),
        (["run", "hi", "--seed", "-1"], "--seed"),
        (["run", "hi", "--markers", "<think>"], "OPEN,CLOSE"),
        (["run", "hi", "--markers", "a,b", "--think-prompt"], "exclude each other"),
        (["run", "hi", "--model", ""], "--model is empty"),
        (["doctor", "--markers", "a,a"], "OPEN,CLOSE"),
        (["tasks", "--level", "9"], "accepted: 1, 2, 3"),
        (["tasks", "--kind", "stroy"], "did you mean 'story'?"),
        (["tasks", "--split", "tets"], "did you mean 'test'?"),
        (["tasks", "--limit", "0"], "--limit"),
        (["bench", "--limti", "4"], "--limit"),
        (["serve", "--engine", "vllm", "--upstream", "http://127.0.0.1:9/v1"], "--upstream"),
        (["serve", "--engine", "vllm", "--helper=x", "--seed", "1"], "--helper"),
        (["train"], "tersely train --help"),
        (["train", "tiny", "--size", "middle", "--out", "x"], "--size"),
        (["train", "tiny", "--size", "small", "--out", __file__], "is a file"),
    ],
)
def test_bad_options(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert said in refused(capsys, *arguments)


@pytest.mark.parametrize(("given", "said"), [(b"caf\xe9 1+1", "not UTF-8 (byte 3)"), (b" \n", "prompt is empty")])
def test_bad_standard_input(
    given: bytes, said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given)))
    assert said in refused(capsys, "run", "-")


@pytest.mark.parametrize(
    ("name", "said"),
    [("/nowhere/at/all", "does not exist"), ("{tmp}", "config.json"), ("{file}", "give the folder")],
)
def test_no_such_model(name: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "weights.gguf"
    file.touch()
    assert said in refused(capsys, "run", "hi", "--model", name.format(tmp=tmp_path, file=file))


def copied(folder: Path, template: str | None, markers: bool) -> str:
    """A copy of the embedded model with another chat template (or none), and without its marker tokens if asked."""
    origin = get_model_path("tersely-tiny-small")
    if not origin.is_dir():
        pytest.skip("the embedded model is not there yet")
    shutil.copytree(origin, folder)
    (folder / "chat_template.jinja").unlink()
    if template is not None:
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    if not markers:
        for name in ("tokenizer.json", "tokenizer_config.json"):
            path = folder / name
            path.write_text(path.read_text(encoding="utf-8").replace("think>", "other>"), encoding="utf-8")
    return str(folder)


def test_a_model_without_chat_template(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = copied(tmp_path / "m", None, markers=True)
    assert "no chat template" in refused(capsys, "run", "hi", "--model", model)


def test_a_model_without_markers_is_refused_until_told_how(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = copied(tmp_path / "m", CHATML, markers=False)
    assert "--think-prompt" in refused(capsys, "run", "hi", "--model", model)
    assert main(["run", "What is 3 + 4?", "--model", model, "--think-prompt", "--json", "--max-new-tokens", "80"]) == 0
    assert json.loads(capsys.readouterr().out)["thinking"]


def test_a_prompt_beyond_the_context(capsys: pytest.CaptureFixture[str]) -> None:
    if not get_model_path("tersely-tiny-small").is_dir():
        pytest.skip("the embedded model is not there yet")
    assert "shorten the prompt" in refused(capsys, "run", "12345 " * 1000)


def test_our_own_bugs_are_not_dressed_up_as_user_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("tersely.cli.run.ModelSource", broken)
    with pytest.raises(RuntimeError):
        main(["run", "hi"])
