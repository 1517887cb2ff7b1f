"""`tersely steer`: pairs of correct thinking, the choice of layer and strength, the verdict, and the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers.utils import logging

from tersely.cli.app import main
from tersely.controller.engines.transformers.engine import TransformersEngine, load_engine
from tersely.controller.options import GenerationOptions
from tersely.controller.session import Session
from tersely.controller.trace import GenerationResult
from tersely.controller.types import Completion
from tersely.evaluation.bench.arms import Bench
from tersely.evaluation.research import steering as running
from tersely.evaluation.research.steering import as_text
from tersely.evaluation.research.steering_search import (
    BACKWARDS,
    COSTLY,
    MAGNITUDE,
    NOTHING,
    ONE_SIDED,
    SHORTENS,
    SampledThinking,
    TriedDirection,
    choose,
    default_layers,
    find_ends,
    judge,
    sample_pairs,
    search,
    validate,
)
from tersely.evaluation.runner import SessionRunner
from tersely.evaluation.tasks.equality import AnswerChecker
from tersely.evaluation.tasks.questions import Question, hash_question, load
from tersely.io import CheckpointLog
from tersely.probes.research.learned import MIN_PAIRS, Direction, Pair

from ...support.commands import refused

SHORT, LONG = "So 6 + 4 is 10.\n\n", "Wait, 10 it is.\n\n"


@pytest.fixture(scope="module")
def engine() -> TransformersEngine:
    logging.disable_progress_bar()
    return load_engine("tersely-tiny-small")


class Scripted:
    """Answers each question with the texts written for it, one per call."""

    generated_tokens = 0

    def __init__(self, engine: TransformersEngine, texts: dict[str, list[str]]) -> None:
        self.session, self.texts, self.calls = Session(engine), texts, 0

    def answer(self, problems: list[str], options: GenerationOptions) -> list[GenerationResult]:
        self.calls += 1
        rows = self.session.prepare(problems, options)
        ids = [tuple(self.session.codec.encode(self.texts[p][self.calls - 1])) for p in problems]
        done = [Completion(one, (False,) * len(one), "stop") for one in ids]
        return [self.session.finish(row, one) for row, one in zip(rows, done, strict=True)]


def wrote(thoughts: int, answer: int = 10) -> str:
    return f"{SHORT}{LONG * (thoughts - 1)}</think>\n\nThe answer is \\boxed{{{answer}}}."


TEXTS = {
    "four lengths": [wrote(3), wrote(1), wrote(5, answer=9), wrote(4)],
    "one right": [wrote(1), wrote(2, answer=9), wrote(3, answer=9), wrote(4, answer=9)],
    "all alike": [wrote(2)] * 4,
    "never closed": [wrote(1), "It is \\boxed{10}.\n\nIt is.\n\nIt is.\n\nIt is."] * 2,
}


@pytest.mark.parametrize("place", ["tokens", "ends"])
def test_shortest_and_longest_correct_thinking_are_paired(engine: TransformersEngine, place: str) -> None:
    runner: Any = Scripted(engine, TEXTS)
    questions = [Question(f"q{i}", problem, "10") for i, problem in enumerate(TEXTS)]
    with AnswerChecker() as checker:
        bench = Bench(runner, questions, checker, CheckpointLog(None, {}), rollouts=4)
        found = sample_pairs(bench, GenerationOptions(preset="off"), place)
    codec = runner.session.codec
    (pair,) = found.pairs
    (row,) = runner.session.prepare(["four lengths"], GenerationOptions(preset="off"))
    assert pair.prompt == row.rendered.ids
    assert codec.decode(pair.short) == SHORT
    # Cut after as many thoughts, or left whole: then both are cut to as many tokens where they are read.
    assert codec.decode(pair.long) == (SHORT if place == "ends" else SHORT + 3 * LONG)
    assert found.accuracy == (3 + 1 + 4 + 4) / 16
    assert (found.short, found.long) == (len(codec.encode(SHORT)), len(codec.encode(SHORT + 3 * LONG)))


def test_find_ends_gives_the_ends_of_thoughts(engine: TransformersEngine) -> None:
    codec = Session(engine).codec
    ids = tuple(codec.encode("It is 3.5.\nSo it is.\n\nWait.\n\nNo end"))
    assert [codec.decode(ids[:end]) for end in find_ends(ids, codec)] == [
        "It is 3.5.\nSo it is.\n\n",
        "It is 3.5.\nSo it is.\n\nWait.\n\n",
    ]


def test_validation_uses_other_questions(engine: TransformersEngine) -> None:
    base = {"name": "tersely-tiny-small", "fingerprint": engine.fingerprint()}
    direction = Direction("ends", (1, 2), np.eye(2, 128, dtype=np.float32), np.ones(2, np.float32), base)
    runner: Any = Scripted(engine, {"easy": [wrote(2)] * 9, "hard": [wrote(3, answer=9)] * 9})
    log, common = CheckpointLog(None, {}), GenerationOptions(preset="off")
    with AnswerChecker() as checker:
        easy, hard = (
            Bench(runner, [Question(f"{name}{i}", name, "10") for i in range(3)], checker, log)
            for name in ("easy", "hard")
        )
        tried = search(easy, direction, (1, 2), (0.1, 0.2), common)
        proof = validate(hard, direction, 2, 0.1, common)
    assert [(t.layer, t.strength) for t in tried] == [(0, 0.0), (1, 0.1), (1, 0.2), (2, 0.1), (2, 0.2)]
    assert {t.accuracy for t in tried} == {1.0}
    assert [proof[name]["accuracy"] for name in ("base", "plus", "minus")] == [0.0] * 3
    assert proof["verdict"] == NOTHING
    assert runner.calls == 8


def test_the_shortest_without_loss_is_chosen() -> None:
    base = TriedDirection(0, 0.0, 300.0, 0.80)
    good, better, costly, longer = (
        TriedDirection(1, 0.1, 290.0, 0.79),
        TriedDirection(2, 0.2, 250.0, 0.85),
        TriedDirection(2, 0.4, 200.0, 0.78),
        TriedDirection(1, 0.4, 310.0, 0.90),
    )
    assert choose([base, good, better, costly, longer]) == better
    assert choose([base, good, costly, longer]) == good
    assert choose([base, costly, longer]) is None


def test_the_verdict_depends_on_both_signs() -> None:
    down, up, open_, same, worse = (-9.0, -2.0), (2.0, 9.0), (-3.0, 4.0), (-0.03, 0.02), (-0.09, -0.02)
    assert judge(down, up, same) == SHORTENS
    assert judge(down, up, worse) == COSTLY
    assert judge(down, down, same) == judge(up, up, worse) == MAGNITUDE
    assert judge(up, down, same) == judge(up, open_, same) == BACKWARDS
    assert judge(down, open_, same) == ONE_SIDED
    assert judge(open_, up, same) == judge(open_, open_, worse) == NOTHING


def test_layers_by_default_are_the_middle_third() -> None:
    assert default_layers(4) == (1, 2, 3)
    assert default_layers(28) == tuple(range(10, 19))
    assert default_layers(9) == (3, 4, 5, 6)


def command(out: Path, model: str = "tersely-tiny-small", **options: Any) -> list[str]:
    settings = {
        "questions": 20,
        "samples": 2,
        "search_questions": 10,
        "validation_questions": 10,
        "layers": "2",
        "max_new_tokens": 80,
        **options,
    }
    words = [word for name, value in settings.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    return ["steer", model, "--out", str(out), *words]


def planted(bench: Bench, options: GenerationOptions, place: str) -> SampledThinking:
    """Pairs that differ in whether the thinking ends or continues."""
    session = bench.runner.session
    prompts = [row.rendered.ids for row in session.prepare([q.problem for q in bench.questions], options)]
    short, long = (tuple(session.codec.encode(text)) for text in (SHORT, LONG))
    return SampledThinking(tuple(Pair(prompt, short, long) for prompt in prompts), 0.9, len(short), len(long))


@pytest.mark.slow
def test_the_command_saves_the_direction(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    logging.disable_progress_bar()
    monkeypatch.setattr(running, "sample_pairs", planted)
    words = command(tmp_path, strengths="0.3,8")
    code = main([*words, "--json"])
    report = json.loads(capsys.readouterr().out)
    assert code == (0 if report["usable"] else 1)
    (note,) = report["notes"]
    assert "20 questions with 2" in note
    assert [(t["layer"], t["strength"]) for t in report["search"]["tried"]] == [(0, 0.0), (2, 0.3), (2, 8.0)]
    found = Direction.load(tmp_path / "steering", load_engine("tersely-tiny-small").fingerprint())
    assert (found.place, found.layers) == ("ends", (1, 2, 3))
    if not report["usable"]:
        assert (found.layer, found.strength) == (None, None)
    asked = load("tiny", "fit", 20, 0) + load("tiny", "calibrate", 20, 0)
    assert found.learned_from == {hash_question(question) for question in asked}
    assert found.metrics["search"] == report["search"]
    assert not (tmp_path / "steering.journal").exists()
    text = as_text(report)
    assert "20 questions, 2 answers each, 90.0% right" in text
    assert "layer 2, strength +0.3: " in text


def report_of(word: str) -> dict[str, Any]:
    arm = {
        "n": 10,
        "tokens": {"total": 300.0},
        "accuracy": 0.8,
        "delta_total": -50.0,
        "delta_total_ci": [-60.0, -40.0],
        "delta_accuracy": 0.01,
        "delta_accuracy_ci": [-0.02, 0.03],
    }
    return {
        "model": "m",
        "place": "ends",
        "sampled": {"questions": 20, "samples": 2, "accuracy": 0.9, "pairs": 20, "short": 9.0, "long": 12.0},
        "direction": {"layers": [1], "agreement": [0.9], "size": [0.3]},
        "search": {"n": 10, "margin": 0.01, "tried": [{"layer": 0, "strength": 0.0, "tokens": 300.0, "accuracy": 0.8}]},
        "chosen": {"layer": 2, "strength": 0.4, "tokens": 250.0, "accuracy": 0.8},
        "proof": {"base": arm, "plus": arm, "minus": arm, "verdict": word},
        "notes": [],
    }


def test_the_report_shows_both_signs() -> None:
    lines = as_text(report_of(SHORTENS)).splitlines()
    assert lines[-1] == f"verdict: {SHORTENS}"
    assert lines[-3] == "  strength +0.4: tokens -50.0 [-60.0, -40.0], accuracy in points +1.0 [-2.0, +3.0]"
    assert lines[-2].startswith("  strength -0.4: ")
    nothing = {**report_of(SHORTENS), "chosen": None, "proof": None}
    assert as_text(nothing).splitlines()[-1] == "nothing is shorter without losing more than 1% of accuracy: not usable"


@pytest.mark.slow
def test_too_few_pairs_are_refused_and_the_samples_stay_in_the_log(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    logging.disable_progress_bar()
    error = refused(capsys, *command(tmp_path, max_new_tokens=80))
    assert f"{MIN_PAIRS} or more" in error
    monkeypatch.setattr(SessionRunner, "answer", None)  # a second run finds everything in the log
    assert refused(capsys, *command(tmp_path, max_new_tokens=80)) == error


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        ({"place": "middle"}, "'middle'"),
        ({"effort": "none"}, "--effort is 'none'"),
        ({"layers": "two"}, "--layers is 'two'"),
        ({"strengths": "0.1,0.1"}, "'0.1,0.1'"),
        ({"layers": "4"}, "layer 4"),
        ({"questions": 5}, "20"),
        ({"model": "nobody"}, "nobody"),
    ],
)
def test_bad_options_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: dict[str, Any], shown: str
) -> None:
    assert shown in refused(capsys, *command(tmp_path / "out", **options))
    assert not (tmp_path / "out").exists()


def test_a_file_must_hold_enough_questions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"id": str(i), "problem": f"What is {i} + 1?", "answer": str(i + 1)} for i in range(39)]
    path = tmp_path / "few.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    error = refused(capsys, *command(tmp_path / "out", tasks=path))
    assert "39" in error and "40" in error
