"""Finding a direction: pairs of right answers, the choice of layer and strength, both signs, and the command."""

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
from tersely.evaluation.bench.checkpoint_log import CheckpointLog
from tersely.evaluation.bench.run import Bench
from tersely.evaluation.research.steering import run as running
from tersely.evaluation.research.steering.pairs import SampledThinking, ends, sample
from tersely.evaluation.research.steering.report import as_text
from tersely.evaluation.research.steering.search import (
    BACKWARDS,
    COSTLY,
    MAGNITUDE,
    NOTHING,
    ONE_SIDED,
    SHORTENS,
    TriedDirection,
    cheapest,
    default_layers,
    prove,
    search,
    verdict,
)
from tersely.evaluation.runner import SessionRunner
from tersely.evaluation.tasks.equality import AnswerChecker
from tersely.evaluation.tasks.questions import Question, hash_question, load
from tersely.probes.research.steering import MIN_PAIRS, Direction, Pair, load_direction

from ...support.commands import refused

SHORT, LONG = "So 6 + 4 is 10.\n\n", "Wait, 10 it is.\n\n"


@pytest.fixture(scope="module")
def engine() -> TransformersEngine:
    logging.disable_progress_bar()
    return load_engine("tersely-tiny-small")


class Scripted:
    """Answers each question by what is written for it, one text a call."""

    made = 0

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
def test_the_shortest_and_the_longest_right_answers_are_paired(engine: TransformersEngine, place: str) -> None:
    answerer: Any = Scripted(engine, TEXTS)
    questions = [Question(f"q{i}", problem, "10") for i, problem in enumerate(TEXTS)]
    with AnswerChecker() as checker:
        bench = Bench(answerer, questions, checker, CheckpointLog(None, {}), rollouts=4)
        found = sample(bench, GenerationOptions(preset="off"), place)
    codec = answerer.session.codec
    (pair,) = found.pairs
    (row,) = answerer.session.prepare(["four lengths"], GenerationOptions(preset="off"))
    assert pair.prompt == row.rendered.ids
    assert codec.decode(pair.short) == SHORT
    # Cut after as many thoughts, or left whole: then both are cut to as many tokens where they are read.
    assert codec.decode(pair.long) == (SHORT if place == "ends" else SHORT + 3 * LONG)
    assert found.accuracy == (3 + 1 + 4 + 4) / 16
    assert (found.short, found.long) == (len(codec.encode(SHORT)), len(codec.encode(SHORT + 3 * LONG)))


def test_ends_are_those_that_are_steered(engine: TransformersEngine) -> None:
    codec = Session(engine).codec
    ids = tuple(codec.encode("It is 3.5.\nSo it is.\n\nWait.\n\nNo end"))
    assert [codec.decode(ids[:end]) for end in ends(ids, codec)] == [
        "It is 3.5.\nSo it is.\n\n",
        "It is 3.5.\nSo it is.\n\nWait.\n\n",
    ]


def test_what_is_proved_is_asked_anew(engine: TransformersEngine) -> None:
    base = {"name": "tersely-tiny-small", "fingerprint": engine.fingerprint()}
    direction = Direction("ends", (1, 2), np.eye(2, 128, dtype=np.float32), np.ones(2, np.float32), base)
    answerer: Any = Scripted(engine, {"easy": [wrote(2)] * 9, "hard": [wrote(3, answer=9)] * 9})
    journal, common = CheckpointLog(None, {}), GenerationOptions(preset="off")
    with AnswerChecker() as checker:
        easy, hard = (
            Bench(answerer, [Question(f"{name}{i}", name, "10") for i in range(3)], checker, journal)
            for name in ("easy", "hard")
        )
        tried = search(easy, direction, (1, 2), (0.1, 0.2), common)
        proof = prove(hard, direction, 2, 0.1, common)
    assert [(t.layer, t.strength) for t in tried] == [(0, 0.0), (1, 0.1), (1, 0.2), (2, 0.1), (2, 0.2)]
    assert {t.accuracy for t in tried} == {1.0}
    assert [proof[name]["accuracy"] for name in ("base", "plus", "minus")] == [0.0] * 3
    assert proof["verdict"] == NOTHING
    assert answerer.calls == 8


def test_the_cheapest_that_costs_no_accuracy_is_chosen() -> None:
    base = TriedDirection(0, 0.0, 300.0, 0.80)
    good, better, costly, longer = (
        TriedDirection(1, 0.1, 290.0, 0.79),
        TriedDirection(2, 0.2, 250.0, 0.85),
        TriedDirection(2, 0.4, 200.0, 0.78),
        TriedDirection(1, 0.4, 310.0, 0.90),
    )
    assert cheapest([base, good, better, costly, longer]) == better
    assert cheapest([base, good, costly, longer]) == good
    assert cheapest([base, costly, longer]) is None


def test_both_signs_decide_what_a_direction_is_worth() -> None:
    down, up, open_, same, worse = (-9.0, -2.0), (2.0, 9.0), (-3.0, 4.0), (-0.03, 0.02), (-0.09, -0.02)
    assert verdict(down, up, same) == SHORTENS
    assert verdict(down, up, worse) == COSTLY
    assert verdict(down, down, same) == verdict(up, up, worse) == MAGNITUDE
    assert verdict(up, down, same) == verdict(up, open_, same) == BACKWARDS
    assert verdict(down, open_, same) == ONE_SIDED
    assert verdict(open_, up, same) == verdict(open_, open_, worse) == NOTHING


def test_layers_by_default_are_the_middle_third() -> None:
    assert default_layers(4) == (1, 2, 3)
    assert default_layers(28) == tuple(range(10, 19))
    assert default_layers(9) == (3, 4, 5, 6)


def command(out: Path, **options: Any) -> list[str]:
    settings = {"questions": 20, "samples": 2, "dev": 10, "proof": 10, "layers": "2", "max_new_tokens": 120, **options}
    words = [word for name, value in settings.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    return ["steer", "--out", str(out), *words]


def planted(bench: Bench, options: GenerationOptions, place: str) -> SampledThinking:
    """Pairs that differ in whether a thinking ends or goes on."""
    session = bench.answerer.session
    prompts = [row.rendered.ids for row in session.prepare([q.problem for q in bench.questions], options)]
    short, long = (tuple(session.codec.encode(text)) for text in (SHORT, LONG))
    return SampledThinking(tuple(Pair(prompt, short, long) for prompt in prompts), 0.9, len(short), len(long))


def test_the_command_keeps_what_it_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    logging.disable_progress_bar()
    monkeypatch.setattr(running, "sample", planted)
    words = command(tmp_path, strengths="0.3,8")
    code = main([*words, "--json"])
    report = json.loads(capsys.readouterr().out)
    assert code == (0 if report["usable"] else 1)
    assert report["notes"] == ["20 questions with 2 answers each are few for a direction; 200 with 8 are better"]
    assert [(t["layer"], t["strength"]) for t in report["search"]["tried"]] == [(0, 0.0), (2, 0.3), (2, 8.0)]
    found = load_direction(tmp_path / "steering", load_engine("tersely-tiny-small").fingerprint())
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


def test_the_report_says_what_both_signs_do() -> None:
    lines = as_text(report_of(SHORTENS)).splitlines()
    assert lines[-1] == f"verdict: {SHORTENS}"
    assert lines[-3] == "  strength +0.4: -50.0 tokens [-60.0, -40.0], accuracy +1.0 points [-2.0, +3.0]"
    assert lines[-2].startswith("  strength -0.4: ")
    nothing = {**report_of(SHORTENS), "chosen": None, "proof": None}
    assert as_text(nothing).splitlines()[-1] == "nothing is shorter without losing more than 1% of accuracy: not usable"


def test_too_few_pairs_are_refused_and_the_answers_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    logging.disable_progress_bar()
    said = refused(capsys, *command(tmp_path, max_new_tokens=80))
    assert f"accepted: {MIN_PAIRS} or more" in said
    monkeypatch.setattr(SessionRunner, "answer", None)  # a second run has nothing left to ask
    assert refused(capsys, *command(tmp_path, max_new_tokens=80)) == said


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"place": "middle"}, "unknown place 'middle'; accepted: ends, tokens"),
        ({"effort": "none"}, "accepted: easy, normal, hard"),
        ({"layers": "two"}, "--layers 'two' not understood"),
        ({"strengths": "0.1,0.1"}, "names one twice"),
        ({"layers": "4"}, "layer 4 cannot be steered; accepted: 1 to 3"),
        ({"questions": 5}, "20"),
        ({"model": "nobody"}, "nobody"),
    ],
)
def test_bad_options_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: dict[str, Any], says: str
) -> None:
    assert says in refused(capsys, *command(tmp_path / "out", **options))
    assert not (tmp_path / "out").exists()


def test_a_file_must_hold_enough_questions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"id": str(i), "problem": f"What is {i} + 1?", "answer": str(i + 1)} for i in range(39)]
    path = tmp_path / "few.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    assert "has 39 questions and 40 are wanted" in refused(capsys, *command(tmp_path / "out", task=path))
