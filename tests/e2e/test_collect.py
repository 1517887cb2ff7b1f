"""`tersely collect` on the embedded model: columns match a plain run, and an interrupted collection resumes."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers.utils import logging

from tersely.cli.app import main
from tersely.controller.budgets import fit_budget
from tersely.controller.engines.transformers.engine import TransformersEngine, load_engine
from tersely.controller.options import GenerationOptions, with_seed
from tersely.controller.policies.base import TrialAnswer
from tersely.controller.policies.record import ThoughtRecord, mean_entropy
from tersely.controller.prompts import render
from tersely.controller.session import Session
from tersely.controller.trace import GenerationResult, Usage
from tersely.evaluation.collect import CollectOptions, Collector
from tersely.evaluation.runner import batch_seed, batches
from tersely.evaluation.tasks.equality import AnswerChecker
from tersely.evaluation.tasks.questions import Question, hash_question, load
from tersely.models import get_model_path
from tersely.probes.calibrate.data import ENOUGH
from tersely.probes.records import UNKNOWN, Array, RecordTable, read_records
from tersely.probes.rule import FEATURES

from ..support.commands import refused

PROBLEMS = {
    "Tom has 3 shells. Tom finds 4 shells. How many shells does Tom have now?": "7",
    "Set a to 5 + 4. Set b to a - 7. What is b?": "2",
    "What is 7 * 6?": "42",
    "Mia has 4 shells. Mia finds 3 more shells. How many shells does Mia have now?": "7",
    "What is (5 + 8) * 3 - 2?": "37",
}
TIERS = ("none", "easy", "normal")
LAYERS = (2, -1)
BATCH, MOST, SEED = 3, 300, 5


def write_task(path: Path, count: int = len(PROBLEMS)) -> Path:
    """Questions in a file, with levels beyond 16 bits."""
    rows = [
        {"id": f"q{i}", "problem": problem, "answer": answer, "level": 100_000 * i}
        for i, (problem, answer) in enumerate(PROBLEMS.items())
    ]
    path.write_text("\n".join(json.dumps(row) for row in rows[:count]), encoding="utf-8")
    return path


def greedy_model(folder: Path) -> Path:
    """The embedded model with greedy defaults, because trials consume random numbers whatever the seed."""
    shutil.copytree(get_model_path("tersely-tiny-small"), folder)
    place = folder / "generation_config.json"
    config = json.loads(place.read_text(encoding="utf-8"))
    config["do_sample"] = False
    del config["temperature"], config["top_p"]
    place.write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.fixture(autouse=True, scope="module")
def _quiet() -> None:
    logging.disable_progress_bar()


def command(questions: Path, out: Path, model: Path | str = "tersely-tiny-small", **options: Any) -> list[str]:
    settings = {
        "tasks": questions,
        "seed": SEED,
        "tiers": ",".join(TIERS),
        "layers": ",".join(map(str, LAYERS)),
        "batch_size": BATCH,
        "max_new_tokens": MOST,
        **options,
    }
    words = [word for name, value in settings.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    return ["collect", str(model), "--out", str(out), *words]


class Collected:
    """A collection, and the same questions answered without it, by batch and tier."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "data"
        task = write_task(folder / "task.jsonl")
        model = greedy_model(folder / "model")
        assert main(command(task, self.folder, model=model)) == 0
        self.records = read_records(self.folder)
        self.engine = load_engine(model)
        self.session = Session(self.engine)
        questions = load(str(task), "fit", None, SEED)
        self.questions = [questions[i] for rows in batches(questions, BATCH) for i in rows]
        self.plain: list[GenerationResult] = []
        for number, rows in enumerate(batches(questions, BATCH)):
            for tier in TIERS:
                options = GenerationOptions(effort=tier, preset="off", max_new_tokens=MOST, signals=True)
                seeded = with_seed(options, batch_seed(SEED, tier, 0, number))
                self.plain += self.session.run([questions[i].problem for i in rows], seeded)

    def owner(self, rollout: int) -> Question:
        """The question of a rollout."""
        return self.questions[int(self.records["rollouts.question"][rollout])]

    def boundaries(self, rollout: int) -> list[int]:
        """The rows of the boundaries of a rollout."""
        return [int(row) for row in np.flatnonzero(self.records["boundaries.rollout"] == rollout)]


@pytest.fixture(scope="module")
def collected(tmp_path_factory: pytest.TempPathFactory) -> Collected:
    return Collected(tmp_path_factory.mktemp("collected"))


def test_rollouts_are_those_of_an_unwatched_session(collected: Collected) -> None:
    """Trial answers leave no trace in what is sampled, and their tokens are in no count."""
    records = collected.records
    assert records.size("rollouts") == len(collected.plain) == len(TIERS) * len(PROBLEMS)
    with AnswerChecker() as checker:
        for rollout, done in enumerate(collected.plain):
            assert TIERS[records["rollouts.tier"][rollout]] == done.tier
            assert records["rollouts.thinking"][rollout] == done.usage.thinking
            assert records["rollouts.answer"][rollout] == done.usage.answer
            assert records["rollouts.finished"][rollout] == (done.finish_reason == "stop")
            assert records["rollouts.right"][rollout] == checker.grade(collected.owner(rollout), done.answer).equal
            assert records["rollouts.entropy"][rollout] == pytest.approx(mean_entropy(done.signals), abs=1e-5)
    assert not records["rollouts.number"].any()
    assert len({done.token_ids for done in collected.plain}) > 10


def test_questions_are_identified(collected: Collected) -> None:
    records = collected.records
    assert list(records.texts["hash"]) == [hash_question(q) for q in collected.questions]
    assert list(records.texts["problem"]) == [q.problem for q in collected.questions]
    assert records["questions.level"].tolist() == [q.level for q in collected.questions]
    assert records["questions.words"].tolist() == [len(q.problem.split()) for q in collected.questions]
    assert records.plan["fingerprint"] == collected.engine.fingerprint()
    assert (records.plan["tiers"], records.plan["layers"]) == (list(TIERS), list(LAYERS))
    assert (records.plan["limit"], records.plan["max_new_tokens"]) == (ENOUGH, MOST)
    assert records.plan["closing"] == len(collected.session.codec.encode("</think>\n\n"))


def test_boundaries_are_the_ends_of_thoughts(collected: Collected) -> None:
    records, codec = collected.records, collected.session.codec
    for rollout, done in enumerate(collected.plain):
        rows = collected.boundaries(rollout)
        ends = records["boundaries.end"][rows].tolist()
        assert ends == sorted(set(ends))
        for count, (row, end) in enumerate(zip(rows, ends, strict=True), 1):
            text = codec.decode(done.token_ids[:end])
            assert text.endswith("\n\n") and "</think>" not in text
            values = dict(zip(FEATURES, records["boundaries.features"][row].tolist(), strict=True))
            assert values["thoughts"] == count
            assert values["log tokens"] == pytest.approx(math.log1p(end))
            seen = [s.entropy for s in done.signals[:end] if s is not None]
            assert values["mean entropy so far"] == pytest.approx(np.mean(seen), abs=1e-5)
            start = ends[count - 2] if count > 1 else 0
            assert values["largest entropy of the thought"] == pytest.approx(max(seen[start:]), abs=1e-5)
        if done.tier == "none":
            assert not rows
        elif done.finish_reason == "stop":
            assert len(rows) >= done.thinking.count("\n\n")
    assert records.size("boundaries") > len(collected.plain)


def test_labels_are_those_of_trials(collected: Collected) -> None:
    records = collected.records
    tried = records["boundaries.trial"] > 0
    assert tried.mean() > 0.8, "all but those without room"
    assert (tried == (records["boundaries.said"] != UNKNOWN)).all()
    confidence = records["boundaries.confidence"]
    assert (tried == (confidence > 0)).all() and confidence.max() <= 1
    last = []
    for rollout, done in enumerate(collected.plain):
        rows = collected.boundaries(rollout)
        if not rows or done.finish_reason != "stop":
            continue
        same, now = records["boundaries.same"][rows], records["boundaries.right"][rows]
        assert (now[same == 1] == records["rollouts.right"][rollout]).all()
        said, stated = records["boundaries.said"][rows], records["boundaries.stated"][rows]
        assert len(set(said[same == 1].tolist())) <= 1, "equal answers have one number"
        assert not set(said[same == 1].tolist()) & set(said[same == 0].tolist())
        assert stated.min() >= UNKNOWN
        last.append(same[-1])
    assert len(last) > 5
    assert np.mean(last) > 0.7, "after its last thought the model says what it then answers"


@pytest.mark.parametrize("layer", LAYERS)
def test_question_states_are_those_after_the_shared_prefix(collected: Collected, layer: int) -> None:
    session, states = collected.session, collected.records[f"questions.state.{layer}"]
    for number, question in enumerate(collected.questions):
        tokenizer, markers = session.engine.tokenizer, session.markers
        ids = [render(tokenizer, question.problem, fit_budget(tier, MOST), markers).ids for tier in TIERS]
        shared = next(i for i, place in enumerate(zip(*ids, strict=False)) if len(set(place)) > 1)
        assert question.problem in session.codec.decode(ids[0][:shared])
        np.testing.assert_allclose(states[number], forward(collected.engine, ids[0][:shared], layer)[-1], atol=2e-4)


@pytest.mark.parametrize("layer", LAYERS)
def test_boundary_states_are_those_of_the_last_token(collected: Collected, layer: int) -> None:
    records, states = collected.records, collected.records[f"boundaries.state.{layer}"]
    assert len(states) == records.size("boundaries")
    for rollout, done in enumerate(collected.plain):
        if not (rows := collected.boundaries(rollout)):
            continue
        options = GenerationOptions(effort=done.tier, max_new_tokens=MOST)
        (prepared,) = collected.session.prepare([collected.owner(rollout).problem], options)
        prompt = prepared.request.prompt_ids
        truth = forward(collected.engine, (*prompt, *done.token_ids), layer)
        places = len(prompt) + records["boundaries.end"][rows] - 2
        np.testing.assert_allclose(states[rows], truth[places], atol=5e-4)


def forward(engine: TransformersEngine, ids: Sequence[int], layer: int) -> Array:
    with torch.no_grad():
        states = engine.model(torch.tensor([ids]), output_hidden_states=True).hidden_states[layer]
    found: Array = states[0].numpy()
    return found


# -- labels ----------------------------------------------------------------------------------------


class ScriptedCollector(Collector):
    """A collector with scripted answers."""

    def _answer(
        self, questions: Sequence[Question], tier: str, seed: int
    ) -> list[tuple[GenerationResult, list[ThoughtRecord]]]:
        text = "The answer is \\boxed{1,000}."
        done = GenerationResult(text, "", text, "stop", tier, Usage(thinking=30, answer=9))
        row = np.zeros(len(FEATURES), np.float32)
        trials = [
            TrialAnswer("999", 0.5, 7, "The answer is \\boxed{1001}."),
            TrialAnswer("1000", 0.75, 8, "\\boxed{1000}"),
            None,
            TrialAnswer("1000.5", 0.25, 9, "It is \\boxed{1000.0}."),
        ]
        stated = [None, "999", "1000", "1000"]
        ends = [
            ThoughtRecord(10 * i, row, told, {-1: np.ones(4, np.float32)}, trial)
            for i, (told, trial) in enumerate(zip(stated, trials, strict=True), 1)
        ]
        return [(done, ends)]

    def _question_columns(self, questions: Sequence[Question]) -> dict[str, Array]:
        return {"questions.level": np.zeros(1), "questions.words": np.zeros(1), "questions.state.-1": np.zeros((1, 4))}


def test_equal_answers_get_the_same_labels() -> None:
    with AnswerChecker() as checker:
        options = CollectOptions(Path("data"), tiers="normal", max_new_tokens=100)
        collector: Any = ScriptedCollector(None, checker, options)  # type: ignore[arg-type]
        columns, texts = collector.collect_batch(
            0, [Question("q", "What is 10 ** 3?", "1000", kind="power")], lambda n: None
        )
    assert columns["rollouts.right"].tolist() == [1]
    assert columns["boundaries.same"].tolist() == [0, 1, 1, 1], "of what is answered, not of what was tried"
    assert columns["boundaries.right"].tolist() == [0, 1, 1, 1]
    assert columns["boundaries.said"].tolist() == [0, 1, UNKNOWN, 2]
    assert columns["boundaries.stated"].tolist() == [UNKNOWN, 0, 1, 1]
    assert columns["boundaries.trial"].tolist() == [7, 8, 0, 9]
    assert columns["boundaries.confidence"].tolist() == [0.5, 0.75, 0, 0.25]
    assert columns["boundaries.state.-1"].shape == (4, 4)
    assert texts["kind"] == ["power"]


# -- a whole collection --------------------------------------------------------------------------------------------


class StoppedError(Exception):
    """Simulates a kill between two batches."""


def same(one: RecordTable, other: RecordTable) -> bool:
    return one.texts == other.texts and all(
        np.allclose(column, other[name], atol=1e-5, equal_nan=True) for name, column in one.columns.items()
    )


def test_an_interrupted_collection_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    task = write_task(tmp_path / "task.jsonl", 3)
    small: dict[str, Any] = {"tiers": "easy", "batch_size": 1, "rollouts": 2, "max_new_tokens": 80}
    assert main(command(task, tmp_path / "whole", **small)) == 0
    collect_batch, asked, left = Collector.collect_batch, list[list[str]](), iter([1, 1])

    def mortal(self: Collector, number: int, questions: Sequence[Question], advance: Callable[[int], None]) -> Any:
        if not next(left, 0):
            raise StoppedError
        asked.append([q.id for q in questions])
        return collect_batch(self, number, questions, advance)

    monkeypatch.setattr(Collector, "collect_batch", mortal)
    with pytest.raises(StoppedError):
        main(command(task, tmp_path / "torn", **small))
    assert len(list((tmp_path / "torn").glob("part*"))) == 2
    left = iter([1, 1])
    capsys.readouterr()
    assert main(command(task, tmp_path / "torn", **small)) == 0
    assert sorted(asked) == [["q0"], ["q1"], ["q2"]], "no batch is collected twice"
    assert "holds 2 rollouts of each of 3 questions; trial answers cost " in capsys.readouterr().out
    whole, torn = read_records(tmp_path / "whole"), read_records(tmp_path / "torn")
    assert same(torn, whole)
    assert set(whole["rollouts.number"].tolist()) == {0, 1}
    assert main(command(task, tmp_path / "torn", **small)) == 0
    assert len(asked) == 3
    assert "cost" not in capsys.readouterr().out
    error = refused(capsys, *command(task, tmp_path / "torn", **small, seed=6, layers="-1"))
    assert "layers, seed" in error


def test_a_larger_limit_adds_questions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    task, out = write_task(tmp_path / "task.jsonl"), tmp_path / "data"
    small: dict[str, Any] = {"tiers": "easy", "batch_size": 2, "max_new_tokens": 110}
    assert main(command(task, out, **small, limit=3)) == 0
    assert f"about {ENOUGH}" in capsys.readouterr().err
    first, parts = read_records(out), {path.name: path.read_bytes() for path in out.glob("part*")}
    assert main(command(task, out, **small, limit=5)) == 0
    grown = read_records(out)
    assert {name: (out / name).read_bytes() for name in parts} == parts
    assert (first.size("rollouts"), grown.size("rollouts")) == (3, 5)
    assert set(first.texts["problem"]) < set(grown.texts["problem"]) == set(PROBLEMS)
    (out / "part-00002.safetensors").unlink()
    assert main(command(task, out, **small, limit=5)) == 0
    assert same(read_records(out), grown), "what was added is resumed, too"
    capsys.readouterr()
    assert "limit" in refused(capsys, *command(task, out, **small, limit=4))


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        ({"tiers": "none,esay"}, "'easy'"),
        ({"tiers": "auto"}, "'auto'"),
        ({"tiers": "easy, none,easy"}, "--tiers 'easy, none,easy'"),
        ({"layers": "2,x"}, "--layers is '2,x'"),
        ({"layers": ""}, "--layers is ''"),
        ({"layers": "-1,2,-1"}, "--layers '-1,2,-1'"),
        ({"tasks": "tinny"}, "'tinny'"),
        ({"split": "fti", "tasks": "tiny"}, "'fit'"),
        ({"model": "/nowhere"}, "/nowhere"),
        ({"rollouts": 0}, "--rollouts"),
        ({"limit": 0}, "--limit"),
    ],
)
def test_bad_options_are_refused(
    options: dict[str, Any], shown: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = write_task(tmp_path / "task.jsonl")
    assert shown in refused(capsys, *command(task, tmp_path / "out", **options))
    assert not (tmp_path / "out").exists()


def test_a_refused_run_leaves_the_folder_usable(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    task, out = write_task(tmp_path / "task.jsonl", 1), tmp_path / "out"
    small: dict[str, Any] = {"tiers": "easy", "layers": "-1"}
    for options, shown in (({"layers": "99"}, "layer 99"), ({"max_new_tokens": 50}, "max_new_tokens is 50")):
        assert main(command(task, out, **{**small, **options})) == 2
        assert shown in capsys.readouterr().err
    assert main(command(task, out, **small)) == 0
    assert read_records(out).plan["layers"] == [-1]
    capsys.readouterr()
    (tmp_path / "file").touch()
    assert str(tmp_path / "file") in refused(capsys, *command(task, tmp_path / "file", **small))


def test_calibrate_reads_what_collect_wrote(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """So few questions are refused by it."""
    task = write_task(tmp_path / "task.jsonl", 2)
    assert main(command(task, tmp_path / "data", tiers="none,normal", max_new_tokens=100)) == 0
    said = capsys.readouterr()
    assert said.out.startswith(f"{tmp_path / 'data'} holds 2 rollouts of each of 2 questions")
    assert f"about {ENOUGH}" in said.err
    assert "40 or more" in refused(capsys, "calibrate", tmp_path / "data", "--out", tmp_path / "probes")
    assert not (tmp_path / "probes").exists()
