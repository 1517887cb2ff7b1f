"""Delegation: the helper's text stands where it belongs, and without a text the model continues alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
from transformers.utils import logging

import tersely
from tersely.controller.delegation import HelperError, HelperFuture, HelperRequest, HelperText
from tersely.controller.engines.transformers.engine import TransformersEngine, load_engine
from tersely.controller.helpers import EngineHelper
from tersely.controller.options import GenerationOptions
from tersely.controller.policies import make_policy
from tersely.controller.policies.base import Boundary, Close, Delegate, Policy, PolicyView, Trial, Wait, Watching
from tersely.controller.policies.speculative import SpeculativeThinking
from tersely.controller.session import Session
from tersely.controller.trace import GenerationResult
from tersely.controller.types import Capability, SamplingParams
from tersely.errors import CapabilityError

SHELLS = "Tom has 3 shells. Tom finds 4 shells. How many shells does Tom have now?"
OTHER = "Set a to 6 + 4. What is a?"
MOST = 400


@pytest.fixture(scope="module")
def engine() -> TransformersEngine:
    logging.disable_progress_bar()
    return load_engine("tersely-tiny-small")


@dataclass(frozen=True)
class Acts(Policy):
    """Takes its actions one after the other, from a number of tokens on; keeps the replies."""

    at: int
    actions: tuple[Any, ...]
    replies: list[str | None]
    boundary: Boundary = "thought"
    name: ClassVar[str] = "acts"
    requires: ClassVar[frozenset[Capability]] = frozenset({Capability.KV_ROLLBACK, Capability.HELPER})

    def watch(self, view: PolicyView) -> Watching:
        yield Wait(at=self.at, boundary=self.boundary)
        for action in self.actions:
            self.replies.append((yield action))


class FakeHelper:
    """Answers requests with futures that a function makes; keeps the requests."""

    reviews = False

    def __init__(self, respond: Callable[[HelperRequest], HelperFuture]) -> None:
        self.respond = respond
        self.requests: list[HelperRequest] = []

    def write(self, request: HelperRequest) -> HelperFuture:
        self.requests.append(request)
        return self.respond(request)


def make_future(outcome: HelperText | Exception) -> HelperFuture:
    future = HelperFuture()
    if isinstance(outcome, Exception):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)
    return future


def writes(text: str, closed: bool = False) -> FakeHelper:
    return FakeHelper(lambda request: make_future(HelperText(text, closed)))


def run(engine: Any, helper: Any, *policies: Any, prompts: Any = (SHELLS,), **options: Any) -> list[GenerationResult]:
    chosen = GenerationOptions(
        policies=policies, max_new_tokens=MOST, sampling=SamplingParams(temperature=0), **options
    )
    return Session(engine, helper=helper).run(list(prompts), chosen)


def acts(*actions: Any, tokens: int = 1, boundary: Boundary = "thought") -> Acts:
    return Acts(tokens, actions, [], boundary)


@pytest.fixture(scope="module")
def plain(engine: TransformersEngine) -> GenerationResult:
    return run(engine, None)[0]


def test_the_helpers_text_follows_the_prefix(engine: TransformersEngine, plain: GenerationResult) -> None:
    helper, policy = writes("3 + 48 = 51.\n\n"), acts(Delegate(30, "why not", prefix="Wait,"))
    (done,) = run(engine, helper, policy)
    (request,) = helper.requests
    assert request.prompt == SHELLS and request.tokens == 30
    assert plain.thinking.startswith(request.thinking.removesuffix("Wait, ").rstrip())
    assert done.thinking.startswith(f"{request.thinking}3 + 48 = 51.".strip())
    assert policy.replies == ["3 + 48 = 51.\n\n"]
    (decision,) = done.trace
    assert (decision.policy, decision.action, decision.acted) == ("acts", "delegate", True)
    assert decision.text == "3 + 48 = 51.\n\n"
    assert done.answer and done.usage.injected > 0


def test_delegating_may_retract_tokens(engine: TransformersEngine, plain: GenerationResult) -> None:
    """Twelve tokens after a paragraph are dropped; the paragraph stays."""
    helper = writes("Then.\n\n")
    (done,) = run(engine, helper, acts(Delegate(9, "draft", retract=12), tokens=25, boundary="token"))
    kept = engine.tokenizer.decode(plain.token_ids[:13])
    assert helper.requests[0].thinking == kept
    assert done.thinking.startswith(f"{kept}Then.".strip())
    assert done.usage.discarded == 12


@pytest.mark.parametrize(("retract", "aside"), [(0, 0), (0, 2), (1, 2), (4, 2)])
def test_a_policy_may_delegate_in_reply_to_a_trial(
    engine: TransformersEngine, plain: GenerationResult, retract: int, aside: int
) -> None:
    helper, kept = writes("Then.\n\n"), engine.tokenizer.decode(plain.token_ids[: 25 - retract])
    actions = (Trial(retract=aside), Delegate(9, "draft", retract=retract))
    (done,) = run(engine, helper, policy := acts(*actions, tokens=25, boundary="token"))
    assert [d.action for d in done.trace] == ["delegate"] and policy.replies[1] == "Then.\n\n"
    assert helper.requests[0].thinking == kept
    assert done.thinking.startswith(f"{kept}Then.".strip())
    assert done.usage.trial > 0 and done.answer


def test_the_helper_may_end_the_thinking(engine: TransformersEngine) -> None:
    (done,) = run(engine, writes("So it is 51.", closed=True), acts(Delegate(99, "end it")))
    assert done.thinking.endswith("So it is 51.")
    assert [d.action for d in done.trace] == ["delegate", "close"]
    assert done.answer and done.finish_reason == "stop"


@pytest.mark.parametrize("broken", ["error", "raises", "nothing"])
def test_without_a_text_the_model_continues_unchanged(
    engine: TransformersEngine, plain: GenerationResult, broken: str
) -> None:
    def explode(request: HelperRequest) -> HelperFuture:
        raise RuntimeError("no such model")

    responses: dict[str, Callable[[HelperRequest], HelperFuture]] = {
        "error": lambda request: make_future(HelperError("down")),
        "raises": explode,
        "nothing": lambda request: HelperFuture(),
    }
    policy = acts(Delegate(30, "help"))
    (done,) = run(engine, FakeHelper(responses[broken]), policy)
    assert done.token_ids == plain.token_ids
    (decision,) = done.trace
    assert decision.action == "error" and decision.reason.startswith("goes on alone: ")
    assert policy.replies == [None]


def test_delegations_may_follow_each_other(engine: TransformersEngine) -> None:
    texts = iter(["One.", " Two.", " Three.\n\n"])
    helper = FakeHelper(lambda request: make_future(HelperText(next(texts), False)))
    (done,) = run(engine, helper, acts(*(Delegate(5, str(n)) for n in range(3))))
    assert "One. Two. Three." in done.thinking
    assert [s.thinking.endswith(end) for s, end in zip(helper.requests[1:], ("One.", " Two."), strict=True)] == [
        True
    ] * 2
    assert [d.reason[0] for d in done.trace] == ["0", "1", "2"]


def test_a_batch_delegates_like_single_sequences(engine: TransformersEngine) -> None:
    policies = [acts(Delegate(5, "x"), Close("done", phrase=""))]
    both = run(engine, writes("Hm.\n\n"), *policies, prompts=(SHELLS, OTHER))
    alone = [run(engine, writes("Hm.\n\n"), *policies, prompts=(p,))[0] for p in (SHELLS, OTHER)]
    assert [b.token_ids for b in both] == [a.token_ids for a in alone]
    assert all([d.action for d in b.trace] == ["delegate", "close"] for b in both)


def test_shadow_delegates_nothing(engine: TransformersEngine, plain: GenerationResult) -> None:
    helper = writes("x")
    (done,) = run(engine, helper, acts(Delegate(5, "x", retract=3)), shadow=True)
    assert (done.token_ids, helper.requests) == (plain.token_ids, [])
    assert [(d.action, d.acted) for d in done.trace] == [("delegate", False)]


def test_a_long_text_is_cut_to_leave_room_for_closing(engine: TransformersEngine) -> None:
    prompts = (SHELLS.replace("4", "48"),)
    policies = (make_policy("budget"), acts(Delegate(900, "much")))
    (done,) = run(engine, writes("7 + 7 = 14. " * 200), *policies, prompts=prompts)
    assert done.usage.thinking + done.usage.answer <= MOST
    assert done.answer


def test_delegating_needs_a_helper(engine: TransformersEngine) -> None:
    with pytest.raises(CapabilityError) as error:
        run(engine, None, acts(Delegate(5, "x")))
    assert error.value.code == "missing_helper"


def test_speculative_thinking_uses_the_larger_model(engine: TransformersEngine) -> None:
    """The real pair: the large model writes after `Wait`, in one batch for both rows, and all is paid for."""
    helper = EngineHelper(Session(load_engine("tersely-tiny-large")), sampling=SamplingParams(temperature=0))
    done = run(engine, helper, SpeculativeThinking(draft=4, takeover=12, verify=8), prompts=(SHELLS, OTHER))
    steps = [d for one in done for d in one.trace if d.action == "delegate"]
    assert steps and all("reflective step" in d.reason or "verifying step" in d.reason for d in steps)
    for one in done:
        assert one.answer
        told = sum(int(d.reason.split(" wrote ")[1].split()[0]) for d in one.trace if d.action == "delegate")
        assert one.usage.helper_completion == told
        assert (one.usage.helper_prompt > 0) == (told > 0)


def test_a_slow_helper_is_given_up(engine: TransformersEngine, plain: GenerationResult) -> None:
    helper = EngineHelper(Session(load_engine("tersely-tiny-large")), timeout=0.0)
    (done,) = run(engine, helper, acts(Delegate(50, "slowly")))
    assert done.token_ids == plain.token_ids
    assert "not done after 0 s" in done.trace[0].reason


def test_generate_takes_a_helper() -> None:
    done = tersely.generate(
        "tersely-tiny-small", SHELLS, policies=["speculative"], helper="tersely-tiny-large", max_new_tokens=MOST
    )
    assert done.answer
