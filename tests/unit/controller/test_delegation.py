"""Delegating stretches of thinking: what the helper writes stands where it was wanted, and without it all goes on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
from transformers.utils import logging

import tersely
from tersely.controller.engines.transformers.engine import TransformersEngine, load_engine
from tersely.controller.helpers.engine_helper import EngineHelper, HelperFuture, HelperRequest
from tersely.controller.options import GenerationOptions
from tersely.controller.policies import make_policy
from tersely.controller.policies.base import Close, Delegate, PolicyView, Wait, Watching
from tersely.controller.policies.speculative_thinking import ReflectionBudget, SpeculativeThinking, sentence_polarity
from tersely.controller.session import Session
from tersely.controller.trace import GenerationResult
from tersely.controller.types import SamplingParams
from tersely.errors import CapabilityError

SHELLS = "Tom has 3 shells. Tom finds 48 shells. How many shells does Tom have now?"
OTHER = "Set a to 12 + 30. Set b to a - 7. What is b?"
MOST = 400


@pytest.fixture(scope="module")
def engine() -> TransformersEngine:
    logging.disable_progress_bar()
    return load_engine("tersely-tiny-small")


@dataclass(frozen=True)
class At:
    """Makes its moves one after the other, from so many tokens on; keeps what the helper wrote."""

    at: int
    moves: tuple[Any, ...]
    heard: list[str | None]
    boundary: str = "thought"
    name: ClassVar[str] = "at"
    needs: ClassVar[frozenset[str]] = frozenset({"crop", "helper"})

    def watch(self, view: PolicyView) -> Watching:
        view = yield Wait(at=self.at, boundary=self.boundary)  # type: ignore[arg-type]
        for move in self.moves:
            view = yield move
            self.heard.append(view.helped)


class Fake:
    """Writes what a function makes of a stretch; keeps the stretches."""

    def __init__(self, make: Callable[[HelperRequest], HelperFuture]) -> None:
        self.make = make
        self.asked: list[HelperRequest] = []

    def write(self, stretch: HelperRequest) -> HelperFuture:
        self.asked.append(stretch)
        return self.make(stretch)


def writes(text: str, closed: bool = False) -> Fake:
    return Fake(lambda stretch: HelperFuture().settle(text, closed))


def run(engine: Any, helper: Any, *policies: Any, prompts: Any = (SHELLS,), **options: Any) -> list[GenerationResult]:
    chosen = GenerationOptions(
        policies=policies, max_new_tokens=MOST, sampling=SamplingParams(temperature=0), **options
    )
    return Session(engine, helper=helper).run(list(prompts), chosen)


def at(*moves: Any, tokens: int = 1, boundary: str = "thought") -> At:
    return At(tokens, moves, [], boundary)


@pytest.fixture(scope="module")
def plain(engine: TransformersEngine) -> GenerationResult:
    return run(engine, None)[0]


def test_the_helpers_text_stands_after_the_lead(engine: TransformersEngine, plain: GenerationResult) -> None:
    helper, policy = writes("3 + 48 = 51.\n\n"), at(Delegate(30, "why not", lead="Wait,"))
    (done,) = run(engine, helper, policy)
    (stretch,) = helper.asked
    assert stretch.prompt == SHELLS and stretch.tokens == 30
    assert plain.thinking.startswith(stretch.thinking.removesuffix("Wait, ").rstrip())
    assert done.thinking.startswith(f"{stretch.thinking}3 + 48 = 51.".strip())
    assert policy.heard == ["3 + 48 = 51.\n\n"]
    (decision,) = done.trace
    assert (decision.policy, decision.action, decision.acted) == ("at", "delegate", True)
    assert decision.text == "3 + 48 = 51.\n\n"
    assert done.answer and done.usage.forced > 0


def test_what_was_drafted_is_taken_back(engine: TransformersEngine, plain: GenerationResult) -> None:
    """Twelve tokens after a paragraph go, the paragraph before stays; thoughts that they ended are forgotten."""
    helper = writes("Then.\n\n")
    (done,) = run(engine, helper, at(Delegate(9, "draft", take_back=12), tokens=25, boundary="token"))
    kept = engine.tokenizer.decode(plain.token_ids[:13])
    assert helper.asked[0].thinking == kept
    assert done.thinking.startswith(f"{kept}Then.".strip())
    assert done.usage.discarded == 12


def test_the_helper_may_end_the_thinking(engine: TransformersEngine) -> None:
    (done,) = run(engine, writes("So it is 51.", closed=True), at(Delegate(99, "end it")))
    assert done.thinking.endswith("So it is 51.")
    assert [d.action for d in done.trace] == ["delegate", "close"]
    assert done.answer and done.finish_reason == "stop"


@pytest.mark.parametrize("broken", ["error", "raises", "nothing"])
def test_without_a_text_the_model_goes_on_as_if_nothing_had_been(
    engine: TransformersEngine, plain: GenerationResult, broken: str
) -> None:
    def explode(stretch: HelperRequest) -> HelperFuture:
        raise RuntimeError("no such model")

    makers = {
        "error": lambda stretch: HelperFuture().fail("down"),
        "raises": explode,
        "nothing": lambda stretch: HelperFuture(),
    }
    policy = at(Delegate(30, "help"))
    (done,) = run(engine, Fake(makers[broken]), policy)
    assert done.token_ids == plain.token_ids
    (decision,) = done.trace
    assert decision.action == "error" and decision.reason.startswith("goes on alone: ")
    assert policy.heard == [None]


def test_a_chain_of_delegations(engine: TransformersEngine) -> None:
    texts = iter(["One.", " Two.", " Three.\n\n"])
    helper = Fake(lambda stretch: HelperFuture().settle(next(texts), False))
    (done,) = run(engine, helper, at(*(Delegate(5, str(n)) for n in range(3))))
    assert "One. Two. Three." in done.thinking
    assert [s.thinking.endswith(end) for s, end in zip(helper.asked[1:], ("One.", " Two."), strict=True)] == [True] * 2
    assert [d.reason[0] for d in done.trace] == ["0", "1", "2"]


def test_closing_after_a_delegation_and_rows_of_their_own(engine: TransformersEngine) -> None:
    policies = [at(Delegate(5, "x"), Close("done", phrase=""))]
    both = run(engine, writes("Hm.\n\n"), *policies, prompts=(SHELLS, OTHER))
    alone = [run(engine, writes("Hm.\n\n"), *policies, prompts=(p,))[0] for p in (SHELLS, OTHER)]
    assert [b.token_ids for b in both] == [a.token_ids for a in alone]
    assert all([d.action for d in b.trace] == ["delegate", "close"] for b in both)


def test_shadow_delegates_nothing(engine: TransformersEngine, plain: GenerationResult) -> None:
    helper = writes("x")
    (done,) = run(engine, helper, at(Delegate(5, "x", take_back=3)), shadow=True)
    assert (done.token_ids, helper.asked) == (plain.token_ids, [])
    assert [(d.action, d.acted) for d in done.trace] == [("delegate", False)]


def test_a_text_that_is_too_long_is_cut_where_closing_needs_the_room(engine: TransformersEngine) -> None:
    (done,) = run(engine, writes("7 + 7 = 14. " * 200), make_policy("budget"), at(Delegate(900, "much")))
    assert done.usage.thinking + done.usage.answer <= MOST
    assert done.answer


def test_who_delegates_needs_a_helper(engine: TransformersEngine) -> None:
    with pytest.raises(CapabilityError, match="nobody to delegate to"):
        run(engine, None, at(Delegate(5, "x")))


def test_polarity_counts_whole_words() -> None:
    said = {"Yes, that is it.": 1, "Wait, let me check.": -1, "yesterday's checkers": 0, "yes, but wait": -1, "5": 0}
    assert {text: sentence_polarity(text) for text in said} == said


def test_the_counters_of_excess() -> None:
    """The paper's: 15, 20, 25, 30 reflections, then always 30; 125, 150, 175, 200 tokens, then always 200."""
    excess, limits, tokens = ReflectionBudget(), [], []
    for _ in range(6):
        limits.append(excess.limit)
        excess.count = excess.limit
        assert excess.reached()
        tokens.append(excess.spend())
        assert not excess.reached()
    assert limits == [15, 20, 25, 30, 30, 30]
    assert tokens == [125, 150, 175, 200, 200, 200]


def test_reflective_steps_go_to_the_larger_model(engine: TransformersEngine) -> None:
    """The real pair: the large model writes after `Wait`, in one batch for both rows, and all is paid for."""
    helper = EngineHelper(Session(load_engine("tersely-tiny-large")), sampling=SamplingParams(temperature=0))
    done = run(engine, helper, SpeculativeThinking(draft=4, takeover=12, verify=8), prompts=(SHELLS, OTHER))
    steps = [d for one in done for d in one.trace if d.action == "delegate"]
    assert steps and all("reflective step" in d.reason or "verifying step" in d.reason for d in steps)
    for one in done:
        assert one.answer
        told = sum(int(d.reason.split(" wrote ")[1].split()[0]) for d in one.trace if d.action == "delegate")
        assert one.usage.delegated == told
        assert (one.usage.consulted > 0) == (told > 0)


def test_a_helper_that_is_too_slow_is_left_out(engine: TransformersEngine, plain: GenerationResult) -> None:
    helper = EngineHelper(Session(load_engine("tersely-tiny-large")), patience=0.0)
    (done,) = run(engine, helper, at(Delegate(50, "slowly")))
    assert done.token_ids == plain.token_ids
    assert "not done after 0 s" in done.trace[0].reason


def test_the_faces_take_a_helper() -> None:
    done = tersely.generate(
        "tersely-tiny-small", prompts=SHELLS, policies=["reflect"], helper="tersely-tiny-large", max_new_tokens=MOST
    )
    assert done.answer
