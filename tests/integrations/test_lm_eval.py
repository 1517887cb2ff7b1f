"""The lm-eval model: its arguments, the usage log, and lm-eval's own command line."""

from __future__ import annotations

import json
import logging
import re
import shlex
import sys
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tersely.cli.app import main as tersely_main
from tersely.controller.engines.transformers.engine import load_engine
from tersely.controller.options import GenerationOptions
from tersely.controller.session import Session
from tersely.controller.trace import GenerationResult, Usage
from tersely.controller.types import SamplingParams
from tersely.errors import OptionError
from tersely.evaluation.lm_eval import main
from tersely.evaluation.lm_eval.requests import KINDS, ModelArguments, TaskArguments, UsageLog, build_options
from tersely.io import WriteError

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "LM_EVAL.md").read_text(encoding="utf-8")
MODEL = "tersely-tiny-small"


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"pretrained": MODEL, "presset": "off"},
        {"pretrained": MODEL, "preset": False},  # YAML reads off as False
        {"pretrained": MODEL, "preset": "balance"},
        {"pretrained": MODEL, "policies": ["hnit"]},
        {"pretrained": MODEL, "effort": "hrad"},
        {"pretrained": MODEL, "batch_size": "auto"},
        {"pretrained": MODEL, "batch_size": 0},
    ],
)
def test_model_arguments_are_checked_before_anything_is_loaded(arguments: dict[str, Any]) -> None:
    with pytest.raises(OptionError):
        ModelArguments.parse(arguments)


@pytest.mark.parametrize(
    ("kwargs", "limit", "sampling"),
    [
        ({}, 2048, SamplingParams(0.0)),
        ({"max_new_tokens": 300, "temperature": 0.0}, 300, SamplingParams(0.0)),
        (
            {"max_new_tokens": 300, "max_gen_toks": 900},
            900,
            SamplingParams(0.0),
        ),  # lm-eval's own name wins
        ({"temperature": 0.6, "top_k": 20}, 2048, SamplingParams(0.6, top_k=20)),
        ({"do_sample": True, "temperature": 0.6, "top_p": 0.9}, 2048, SamplingParams(0.6, 0.9)),
        ({"do_sample": False, "temperature": 0.6, "top_p": 0.9}, 2048, SamplingParams(0.0)),
    ],
)
def test_task_arguments_become_options(kwargs: dict[str, Any], limit: int, sampling: SamplingParams) -> None:
    model = ModelArguments.parse({"pretrained": MODEL, "preset": "off", "effort": "low", "batch_size": "4"})
    options = build_options("t", model, TaskArguments.parse("t", kwargs))
    assert options == GenerationOptions("low", "off", max_new_tokens=limit, sampling=sampling)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"max_gen_tokes": 300},
        {"repetition_penalty": 1.1},
        {"num_beams": 4},
        {"temperature": -1},
        {"until": [1]},
        {"max_gen_toks": 64},
        {"do_sample": True},
    ],
)
def test_unsupported_task_arguments_are_refused(kwargs: dict[str, Any]) -> None:
    with pytest.raises(OptionError):
        build_options("t", ModelArguments(pretrained=MODEL), TaskArguments.parse("t", kwargs))


def test_answers_end_at_the_first_stop_string() -> None:
    assert TaskArguments(until=["Q:", ".", ""]).truncate("It is 4. Q: 5") == "It is 4"
    assert TaskArguments(until="5").truncate("It is 4. Q: 5") == "It is 4. Q: "
    assert TaskArguments(until=["\n\n"]).truncate("It is 4.") == "It is 4."


def make_result(thinking: int, finish_reason: str = "stop") -> GenerationResult:
    return GenerationResult(
        "", "", "", finish_reason, "easy", Usage(prompt=7, thinking=thinking, answer=3, discarded=2)
    )


def test_the_usage_log_has_every_request_and_means_by_task(tmp_path: Path) -> None:
    log = UsageLog(tmp_path / "out")
    log.open("org__model")
    for task, doc, tokens, ended in (("a", 0, 10, "stop"), ("a", 0, 20, "length"), ("b", 0, 5, "stop")):
        log.add(task, doc, make_result(tokens, ended))
    assert log.path is not None
    assert log.path.parent == tmp_path / "out" / "org__model"
    lines = [json.loads(line) for line in log.path.read_text().splitlines()]
    assert [(line["task"], line["repeat"], line["thinking"], line["total"]) for line in lines] == [
        ("a", 0, 10, 15), ("a", 1, 20, 25), ("b", 0, 5, 10),
    ]  # fmt: skip
    means = log.means()
    assert means["a"] == {
        "requests": 2, "cut_off": 1, "prompt": 7, "thinking": 15, "answer": 3, "forced": 0, "overhead": 2, "total": 20,
    }  # fmt: skip
    assert means["b"]["total"] == 10
    assert str(log.path) in log.summary()


def test_the_usage_file_is_next_to_the_results(tmp_path: Path) -> None:
    log = UsageLog(tmp_path / "new" / "results.json")
    log.open("model")
    assert log.path is not None
    assert log.path.parent == tmp_path / "new"
    (tmp_path / "file").touch()
    with pytest.raises(WriteError):
        UsageLog(tmp_path / "file").open("model")


def test_without_lm_eval_the_command_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    assert main() == 2
    assert "pip install 'tersely[lm-eval]'" in capsys.readouterr().err


# With a real lm-eval, in a folder with the example of docs/LM_EVAL.md.

Run = Callable[..., int]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the documented command with changed or further options, in a new folder."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # from lm-eval's imports
        tasks = pytest.importorskip("lm_eval.tasks")
        import datasets
    # Indexing all of lm-eval's own tasks is slow.
    monkeypatch.setattr(tasks, "TaskManager", partial(tasks.TaskManager, include_defaults=False))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    monkeypatch.setenv("LMEVAL_LOG_LEVEL", "CRITICAL")
    monkeypatch.chdir(tmp_path)
    assert tersely_main(["tasks", "--limit", "3", "--json"]) == 0
    Path("problems.json").write_text(capsys.readouterr().out)
    Path("tasks").mkdir()
    task = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)[0]
    Path("tasks/sums.yaml").write_text(task)
    Path("tasks/choice.yaml").write_text(task.replace("task: sums", "include: sums.yaml\ntask: choice") + _CHOICE)
    Path("tasks/begun.yaml").write_text("include: sums.yaml\ntask: begun\ngen_prefix: The answer is\n")
    command = re.findall(r"^\$ (tersely-lm-eval .*pretrained=tersely-tiny.*\\\n.*)$", PAGE, re.MULTILINE)[0]

    def start(*options: str, tasks: str = "sums", model_args: str = f"pretrained={MODEL}") -> int:
        others = {"sums": tasks, "pretrained=tersely-tiny-small,preset=balanced,effort=normal": model_args}
        words = [others.get(word, word) for word in shlex.split(command.replace("\\\n", ""))]
        monkeypatch.setattr(sys, "argv", [*words, *options])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                return main()
            finally:
                logging.getLogger("lm_eval").handlers.clear()  # they hold a captured stream

    return start


_CHOICE = "output_type: multiple_choice\ndoc_to_choice: ['1', '2']\ndoc_to_target: 0\nmetric_list: [{metric: acc}]\n"


def lines(folder: Path, name: str) -> list[dict[str, Any]]:
    (file,) = folder.glob(f"**/{name}_*.jsonl")
    return sorted((json.loads(line) for line in file.read_text().splitlines()), key=lambda line: line["doc_id"])


@pytest.mark.parametrize("preset", ["off", "balanced"])
def test_the_command_answers_as_a_session_does(
    preset: str, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(model_args=f"pretrained={MODEL},preset={preset},effort=normal") == 0
    printed = capsys.readouterr().out
    folder = tmp_path / "out" / MODEL
    problems = [row["problem"] for row in json.loads((tmp_path / "problems.json").read_text())]
    options = GenerationOptions(preset=preset, sampling=SamplingParams(temperature=0.0))
    session = Session(load_engine(MODEL)).run(problems, options)
    assert [sample["resps"] for sample in lines(folder, "samples_sums")] == [[[done.answer]] for done in session]
    counted = [{kind: line[kind] for kind in KINDS} for line in lines(folder, "usage")]
    assert counted == [{kind: done.usage.as_dict()[name] for kind, name in KINDS.items()} for done in session]
    (results,) = folder.glob("results_*.json")
    info: Mapping[str, Any] = json.loads(results.read_text())["config"]["tersely"]
    assert info["preset"] == preset
    assert (folder / info["usage"]).is_file()
    total = sum(line["total"] for line in counted) / 3
    assert info["mean_tokens"]["sums"]["total"] == pytest.approx(total)
    assert f"{total:.1f}" in printed.splitlines()[-2]


def test_chat_examples_repeats_and_kept_thinking(run: Run, tmp_path: Path) -> None:
    sampled = "until: ['boxed'], do_sample: true, temperature: 0.6, max_gen_toks: 600"
    Path("tasks/shots.yaml").write_text(
        f"include: sums.yaml\ntask: shots\nrepeats: 2\nnum_fewshot: 1\ngeneration_kwargs: {{{sampled}}}\n"
    )
    options = ("--limit", "1", "--apply_chat_template", "--system_instruction", "Be exact.", "--output_path")
    session, texts = Session(load_engine(MODEL)), []
    for where in ("one", "two"):
        assert run(*options, where, tasks="shots", model_args=f"pretrained={MODEL},keep_thinking=true") == 0
        (sample,) = (line for line in lines(Path(where), "samples_shots"))
        messages = json.loads(sample["arguments"]["gen_args_0"]["arg_0"])
        assert [message["role"] for message in messages] == ["system", "user", "assistant", "user"]
        usage = lines(Path(where), "usage")
        assert [line["repeat"] for line in usage] == [0, 1]
        (prepared,) = session.prepare([messages], GenerationOptions())
        assert usage[0]["prompt"] == len(prepared.rendered.ids)
        texts.append(sample["resps"][0])
    assert texts[0] == texts[1], "the same seed"
    assert texts[0][0] != texts[0][1], "repeats are draws of their own"
    assert all("</think>\n\nThe answer is" in text and "boxed" not in text for text in texts[0])


@pytest.mark.parametrize(
    ("options", "changed", "value"),
    [
        ([], {"tasks": "choice"}, "choice: "),
        (["--apply_chat_template"], {"tasks": "begun"}, "gen_prefix 'The answer is'"),
        (["--apply_chat_template", "other"], {}, "'other'"),
        (["--use_cache", "kept"], {}, "--use_cache"),
        (["--batch_size", "auto"], {}, "'auto'"),
        (["--device", "cpuu"], {}, "'cpuu'"),
        ([], {"model_args": "pretrained=/nowhere/at/all"}, "/nowhere/at/all"),
        ([], {"model_args": f"pretrained={MODEL},presset=off"}, "'preset'"),
    ],
)
def test_unsupported_runs_are_refused(
    options: list[str], changed: dict[str, str], value: str, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*options, **changed) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and value in errors[0]
    assert not list(Path().glob("out/**/*.jsonl"))
