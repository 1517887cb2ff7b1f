"""Steering: only while a sequence thinks, only on the model it was made for, and in the trace."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from transformers.utils import logging

import tersely
from tersely.cli.app import main
from tersely.controller.budgets import Budget
from tersely.controller.controller import Controller
from tersely.controller.engines.transformers.engine import TransformersEngine, load_engine
from tersely.controller.engines.transformers.research.steering import Steer, SteeredSequence
from tersely.controller.options import GenerationOptions
from tersely.controller.policies.base import Policy, PolicyView, Trial, Wait, Watching
from tersely.controller.probe_registry import ProbeError
from tersely.controller.session import Session
from tersely.controller.text.markers import Markers
from tersely.controller.text.tokenizer_adapter import get_adapter
from tersely.controller.trace import GenerationResult
from tersely.controller.types import Capability, ForwardModifier
from tersely.errors import CapabilityError, OptionError
from tersely.evaluation.bench.arms import CheckError, check_unseen
from tersely.evaluation.tasks.questions import Question, hash_question
from tersely.probes.artifact import ArtifactError, save
from tersely.probes.research.learned import Direction

from ...support.refusals import refused
from ...support.word_tokenizer import WordTokenizer

PROBLEMS = ["Set a to 6 + 4. What is a?", "Compute 3 + 6.", "Compute 9 - 4 + 2."]


@pytest.fixture(scope="module")
def engine() -> TransformersEngine:
    logging.disable_progress_bar()
    return load_engine("tersely-tiny-small")


def direction(engine: TransformersEngine, **changes: Any) -> Direction:
    """A direction by chance: where it leads is of no matter here."""
    vectors = np.random.default_rng(0).normal(size=(3, 128))
    facts: dict[str, Any] = {
        "place": "tokens",
        "layers": (1, 2, 3),
        "vectors": vectors / np.linalg.norm(vectors, axis=1, keepdims=True),
        "norms": np.full(3, 100.0),
        "base": {"name": "tersely-tiny-small", "fingerprint": engine.fingerprint()},
        "layer": 2,
        "strength": 0.5,
    }
    return Direction(**(facts | changes))


def ask(engine: TransformersEngine, *modifiers: ForwardModifier, **options: Any) -> list[GenerationResult]:
    settings = {"preset": "off", "modifiers": modifiers, "temperature": 0, "max_new_tokens": 100, **options}
    made: list[GenerationResult] = tersely.generate(engine, prompts=PROBLEMS, **settings)
    return made


@pytest.fixture(scope="module")
def plain(engine: TransformersEngine) -> list[GenerationResult]:
    return ask(engine)


def tokens(made: Sequence[GenerationResult]) -> list[tuple[int, ...]]:
    return [one.token_ids for one in made]


class Asks(Policy):
    """Asks for a trial answer after the first thought."""

    name: ClassVar[str] = "asks"
    requires: ClassVar[frozenset[Capability]] = frozenset({Capability.KV_ROLLBACK})

    def watch(self, view: PolicyView) -> Watching:
        yield Wait(boundary="thought")
        yield Trial()


class Idle(Policy):
    """Does nothing."""

    name: ClassVar[str] = "idle"

    def watch(self, view: PolicyView) -> Watching:
        yield Wait(at=1 << 60)


def controller(*policies: Policy, opened: bool = True) -> tuple[Controller, WordTokenizer]:
    tokenizer = WordTokenizer()
    return Controller(
        policies, get_adapter(tokenizer), Markers("<think>", "</think>"), Budget("normal", 500, 100), opened=opened
    ), tokenizer


def test_only_thinking_tokens_have_a_boundary() -> None:
    row, tokenizer = controller(opened=False)
    text = "Well.\n\n<think>One is one.\n\nTwo</think>\n\nThree.\n\n"
    found: list[tuple[str, str | None]] = []
    for token in tokenizer(text)["input_ids"]:
        row.observe(token)
        found.append((tokenizer.decode([token]), row.boundary))
    inside = [piece for piece, boundary in found if boundary is not None]
    assert "".join(inside) == "One is one.\n\nTwo"
    assert [piece for piece, boundary in found if boundary == "thought"] == ["\n\n"]
    assert found[-1] == ("\n\n", None)


def test_a_trial_answer_is_not_steered() -> None:
    row, tokenizer = controller(Asks())
    seen = []
    for token in tokenizer("One.\n\n")["input_ids"]:
        directive = row.observe(token)
    assert directive.trial
    seen.append(row.boundary)
    while directive.trial is not False:
        directive = row.observe(tokenizer("}")["input_ids"][0])
        seen.append(row.boundary)
    assert set(seen[:-1]) == {None}
    assert seen[-1] == "thought"


@pytest.mark.parametrize(("place", "expected"), [("tokens", "One.\n\nTwo is"), ("ends", ".\n\n")])
def test_a_direction_is_added_where_it_was_found(engine: TransformersEngine, place: str, expected: str) -> None:
    session = Session(engine)
    steer = Steer(direction=direction(engine, place=place))
    (row,) = session.prepare(PROBLEMS[:1], GenerationOptions(preset="off", modifiers=(steer,)))
    (steering,), watcher = row.request.modifiers, row.request.watcher
    assert isinstance(steering, SteeredSequence) and watcher is not None
    np.testing.assert_allclose(steering.values, direction(engine).push(2, 0.5))
    assert not steering.active(), "the prompt is left alone"
    steered: list[int] = []
    for token in session.codec.encode("One.\n\nTwo is</think>\n\nThe answer is 2.\n\n"):
        watcher.observe(token)
        steered += [token] if steering.active() else []
    assert session.codec.decode(steered) == expected


@pytest.mark.slow
@pytest.mark.parametrize(("place", "options"), [("tokens", {}), ("ends", {"temperature": 1.0, "seed": 3})])
def test_no_strength_changes_no_token(engine: TransformersEngine, place: str, options: dict[str, Any]) -> None:
    nothing = ask(engine, Steer(direction=direction(engine, place=place), strength=0.0), **options)
    assert tokens(nothing) == tokens(ask(engine, policies=(Idle(),), **options))
    off = ask(engine, **options)
    # A controller closes a thinking in which the model ends its turn; elsewhere it is as if there were none.
    alone = [i for i, one in enumerate(nothing) if len(one.trace) == 1]
    assert alone
    assert [nothing[i].token_ids for i in alone] == [off[i].token_ids for i in alone]


def test_steering_is_traced_and_changes_the_thinking(engine: TransformersEngine, plain: list[GenerationResult]) -> None:
    made = ask(engine, Steer(direction=direction(engine)))
    assert all(a != b for a, b in zip(tokens(made), tokens(plain), strict=True))
    for one in made:
        told, *others = one.trace
        assert {decision.policy for decision in others} <= {"controller"}
        assert (told.policy, told.action, told.position, told.acted) == ("steer", "steer", 0, True)
        assert told.reason == "all thinking tokens at layer 2 with strength +0.5"
    other = ask(engine, Steer(direction=direction(engine, place="ends"), layer=1, strength=-0.3))
    assert other[0].trace[0].reason == "the ends of thoughts at layer 1 with strength -0.3"
    assert tokens(ask(engine)) == tokens(plain), "nothing stays behind"


def test_shadow_tells_and_does_nothing(engine: TransformersEngine, plain: list[GenerationResult]) -> None:
    made = ask(engine, Steer(direction=direction(engine)), shadow=True)
    assert tokens(made) == tokens(plain)
    assert [(d.action, d.acted) for d in made[0].trace] == [("steer", False)]


def test_without_thinking_nothing_is_steered(engine: TransformersEngine) -> None:
    made = ask(engine, Steer(direction=direction(engine)), effort="none")
    assert tokens(made) == tokens(ask(engine, effort="none"))
    assert all(one.trace == () for one in made)


def test_effort_auto_is_steered_as_the_tier_it_chooses(engine: TransformersEngine) -> None:
    steer, policies = Steer(direction=direction(engine)), ("readiness",)  # which auto would add by itself
    chosen = ask(engine, steer, policies=policies, effort="auto")
    by_tier = {tier: ask(engine, steer, policies=policies, effort=tier) for tier in {one.tier for one in chosen}}
    for number, one in enumerate(chosen):
        named = by_tier[one.tier][number]
        assert one.token_ids == named.token_ids
        assert [d.policy for d in one.trace if d.position == 0 and d.action not in ("drift", "note")] == [
            "effort",
            *(["steer"] if one.tier != "none" else []),
        ]


def test_it_works_beside_others(engine: TransformersEngine) -> None:
    (made, *_) = ask(engine, Steer(direction=direction(engine)), policies=("budget",), max_new_tokens=90)
    assert [d.policy for d in made.trace] == ["steer", "budget"]


def test_what_does_not_belong_is_refused(engine: TransformersEngine) -> None:
    with refused(ProbeError):
        ask(engine, Steer())
    other = {"name": "another", "fingerprint": "ab" * 32}
    with refused(ArtifactError):
        ask(engine, Steer(direction=direction(engine, base=other)))
    with refused(OptionError):
        ask(engine, Steer(direction=direction(engine, layer=None, strength=None)))
    with refused(OptionError, "unknown_name"):
        ask(engine, Steer(direction=direction(engine), layer=4))
    with pytest.raises(TypeError):
        Steer().attach(lambda: "thought")


def test_an_engine_must_be_able_to(engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "capabilities", engine.capabilities - {Capability.FORWARD_MODIFIERS})
    with refused(CapabilityError):
        ask(engine, Steer(direction=direction(engine)))


def test_a_benchmark_knows_what_it_was_found_on(engine: TransformersEngine) -> None:
    question = Question("q", "What is 2 + 2?", "4")
    found = direction(engine, provenance={"learned_from": [hash_question(question)]})
    resolved = Session(engine).resolve(GenerationOptions(modifiers=(Steer(direction=found),)))
    with refused(CheckError, "train_test_overlap"):
        check_unseen(resolved.modifiers, [question])


@pytest.mark.slow
def test_the_command_line_takes_a_folder(
    engine: TransformersEngine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(direction(engine), tmp_path / "steering")
    words = [
        "run",
        PROBLEMS[0],
        "--preset",
        "off",
        "--modifier",
        "steer",
        "--probes",
        str(tmp_path),
        "--max-new-tokens",
        "80",
        "--json",
    ]
    assert main(words) == 0
    (told,) = json.loads(capsys.readouterr().out)["decisions"]
    assert (told["action"], told["reason"]) == ("steer", "all thinking tokens at layer 2 with strength +0.5")
