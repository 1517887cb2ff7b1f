"""Thinking on after the model's own close: the marker is taken back, and nothing of it is left."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest

from tersely.controller.budgets import Budget
from tersely.controller.controller import Controller, ControllerState
from tersely.controller.engines.transformers.engine import TransformersEngine
from tersely.controller.options import GenerationOptions
from tersely.controller.policies.base import Close, Inject, Policy, PolicyView, Trial, Wait, Watching
from tersely.controller.session import Session
from tersely.controller.streaming import TextDeltaEvent
from tersely.controller.text.markers import Markers
from tersely.controller.text.tokenizer_adapter import get_adapter
from tersely.controller.trace import GenerationResult
from tersely.controller.types import Request

from ..support.models import letters, random_model
from ..support.trial_rows import CLOSE, GREEDY, PROBLEMS, Row, ask
from ..support.trial_rows import engine as engine  # the fixtures
from ..support.trial_rows import plain as plain
from ..support.word_tokenizer import WordTokenizer


@dataclass(frozen=True)
class Again(Policy):
    """Where the model ends its thinking, does `moves`; each but the first after one more token."""

    name: ClassVar[str] = "again"
    moves: tuple[Close | Inject | Trial, ...] = (Inject("Wait, a quick look again.", "too soon", after="\n"),)
    at: int = 0
    seen: list[tuple[int, str]] = field(default_factory=list)

    def watch(self, view: PolicyView) -> Watching:
        wait = Wait(self.at, "close")
        for move in self.moves:
            yield wait
            self.seen.append((view.tokens, view.thinking.text))
            yield move
            wait = Wait(view.tokens + 1, "token")


def test_a_model_that_ends_its_thinking_thinks_on(engine: TransformersEngine, plain: list[GenerationResult]) -> None:
    events = list[TextDeltaEvent]()
    done = ask(engine, Again(), on_event=events.append)
    forced = get_adapter(engine.tokenizer).encode("Wait, a quick look again.\n")
    kept = [before.token_ids[: before.usage.thinking - 1] for before in plain]
    rows = Session(engine).prepare(PROBLEMS, GenerationOptions())
    texts = [(*row.request.prompt_ids, *begun, *forced) for row, begun in zip(rows, kept, strict=True)]
    by_hand = engine.generate([Request(text, 256) for text in texts], GREEDY)
    for number, (one, begun, rest) in enumerate(zip(done, kept, by_hand, strict=True)):
        assert one.token_ids == (*begun, *forced, *rest.token_ids)
        assert (one.usage.injected, one.usage.discarded, one.usage.trial) == (len(forced), 1, 0)
        assert one.usage.total == len(one.token_ids) + 1
        assert one.usage.thinking > len(begun) + len(forced) + 9
        assert one.text.count("</think>") == 1 and one.answer.startswith("The answer is")
        assert [(d.policy, d.action, d.position, d.acted) for d in one.trace] == [("again", "inject", len(begun), True)]
        assert "".join(event.text for event in events if event.row == number) == one.thinking + one.answer


@pytest.mark.parametrize(
    "options",
    [{"moves": (CLOSE,)}, {"moves": (Trial(),)}, {"moves": ()}, {"at": 500}],
)
def test_what_is_no_injection_lets_the_thinking_end(
    engine: TransformersEngine, plain: list[GenerationResult], options: dict[str, Any]
) -> None:
    (done,) = ask(engine, policy := Again(**options), prompts=PROBLEMS[:1])
    assert (done.token_ids, done.usage, done.trace) == (plain[0].token_ids, plain[0].usage, ())
    assert len(policy.seen) == (1 if options.get("moves") else 0)


def test_thinking_on_in_shadow_is_recorded_only(engine: TransformersEngine, plain: list[GenerationResult]) -> None:
    (done,) = ask(engine, Again(), prompts=PROBLEMS[:1], shadow=True)
    assert (done.token_ids, done.usage) == (plain[0].token_ids, plain[0].usage)
    (decision,) = done.trace
    assert (decision.policy, decision.action, decision.acted) == ("again", "inject", False)
    assert decision.text == "Wait, a quick look again.\n"


def test_in_shadow_a_decision_stands_where_it_would_have(
    engine: TransformersEngine, plain: list[GenerationResult]
) -> None:
    (done,) = ask(engine, Again(), prompts=PROBLEMS[:1], shadow=True)
    assert done.trace[0].position == plain[0].usage.thinking - 1


def test_a_marker_of_several_tokens_goes_as_a_whole() -> None:
    """Two tokens that a random model happens to write are its marker; the sink hears the first, and that it went."""
    model, tokenizer = random_model(eos=126), letters()
    engine, codec = TransformersEngine(model, tokenizer), get_adapter(tokenizer)
    (untried,) = engine.generate([Request((9, 9, 5), 40)], GREEDY)
    place = next(i for i in range(5, 30) if min(untried.token_ids[i : i + 2]) > 30)
    markers = Markers("<open>", codec.decode(untried.token_ids[place : place + 2]))
    again = Again((Inject("abc", "too soon", after=""),))
    controller = Controller((again,), codec, markers, Budget("normal", 200))
    heard: list[int | None] = []
    asked = [Request((9, 9, 5), 40, controller), Request((9, 5), 12)]
    done, other = engine.generate(asked, GREEDY, lambda row, ids, forced: heard.extend([] if row else ids or [None]))
    kept, forced = untried.token_ids[:place], codec.encode("\n\nabc")
    assert done.token_ids[: place + len(forced)] == (*kept, *forced)
    assert done.dropped == 2
    (rest,) = engine.generate([Request((9, 9, 5, *kept, *forced), 40 - place - len(forced))], GREEDY)
    assert done.token_ids[place + len(forced) :] == rest.token_ids
    assert heard[: place + 3] == [*kept, untried.token_ids[place], None, forced[0]]
    assert (other,) == tuple(engine.generate([Request((9, 5), 12)], GREEDY))
    assert controller.decisions[0].position == place
    assert controller.position == len(done.token_ids) == controller.view.tokens


class NoMarkers(WordTokenizer):
    def get_added_vocab(self) -> dict[str, int]:
        return {}


def test_nothing_is_left_of_a_marker_of_several_tokens() -> None:
    row = Row(Again(), markers=Markers("[go]", "[stop]"), tokenizer=NoMarkers())
    assert row.feed("So 5.\n\nThat is all. [stop]") == "So 5.\n\nThat is all. \n\nWait, a quick look again.\n"
    assert [(d.retract, d.trial) for d in row.said] == [(3, None)]
    row.feed("So 6.\n\n")
    thinking = row.controller.thinking
    assert [thought.text for thought in thinking.thoughts] == ["So 5.\n\n", "That is all. ", "So 6.\n\n"]
    assert len(thinking.signals) == len(thinking) == len(row.out) == row.controller.position
    assert row.feed("[stop] 6.").endswith("So 6.\n\n[stop] 6.")
    assert row.controller.state is ControllerState.ANSWER and len(row.said) == 1


def test_a_policy_that_waits_for_the_close_may_have_a_deadline() -> None:
    class Impatient(Again):
        def watch(self, view: PolicyView) -> Watching:
            yield Wait(0, "close", deadline=4)
            yield CLOSE

    assert Row(Impatient()).feed("one two three.") == "one two \n\n</think>\n\nthree."
    assert Row(Impatient()).feed("one</think>two three.") == "one</think>two three."


def test_after_an_injection_at_the_close_a_policy_wakes_when_it_said() -> None:
    row = Row(Again((Inject("Wait.", "too soon"), Inject("HINT", "one token later"))))
    assert row.feed("So 5.\n\n</think>one two three four") == "So 5.\n\nWait.\n\none\n\nHINT\n\n two three four"
