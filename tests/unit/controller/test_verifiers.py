"""Questions to the outside: verdicts by rules and by a model, and rows that go on whatever becomes of the verifier."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
import torch

from tersely.controller.budgets import Budget
from tersely.controller.engines.transformers.engine import TransformersEngine, load_engine
from tersely.controller.policies.base import AskVerifier, Close, PolicyView, Wait, Watching
from tersely.controller.replay import WordTokenizer, replay
from tersely.controller.verification import AnswersEqual, AnswerStated, Question, VerdictFuture
from tersely.controller.verifiers.llm_verifier import LLMVerifier, clone_sharing_weights, encode_question, reply_ids
from tersely.controller.verifiers.rule_verifier import RuleVerifier, answers_equal
from tersely.errors import CapabilityError

from ...support.models import letters, random_model
from ...support.policy_feeding import MARKERS, Fed

STATED, VAGUE = AnswerStated("2+3?", "So the answer is 5."), AnswerStated("2+3?", "Let us see.")
ALIKE = AnswersEqual("2+3?", "So I get 5.", "That makes 5.")


@dataclass(frozen=True)
class Asking:
    """Asks at the third token, looks at each token after it, and closes at a yes."""

    question: Question = STATED
    name: ClassVar[str] = "asking"
    needs: ClassVar[frozenset[str]] = frozenset({"verifier"})
    seen: list[tuple[int, bool]] = field(default_factory=list)

    def watch(self, view: PolicyView) -> Watching:
        view = yield Wait(3, "token")
        view = yield AskVerifier(self.question)
        ticket = view.ticket
        self.seen.append((view.tokens, ticket.done))
        while not ticket.done:
            view = yield Wait(view.tokens + 1, "token")
            self.seen.append((view.tokens, ticket.done))
        if ticket.yes is not None and ticket.yes > 0.5:
            yield Close("yes", phrase="")


class Late:
    """Hands out tickets that somebody else settles."""

    def __init__(self, **options: Any) -> None:
        self.options = options
        self.tickets: list[VerdictFuture] = []
        self.asked: list[Question] = []

    def submit(self, question: Question) -> VerdictFuture:
        self.asked.append(question)
        self.tickets.append(VerdictFuture(tokens=7, **self.options))
        return self.tickets[-1]

    def close(self) -> None:
        pass


class Broken(Late):
    def submit(self, question: Question) -> VerdictFuture:
        raise ConnectionError("nobody\nthere")


@pytest.fixture(scope="module")
def engine() -> TransformersEngine:
    return load_engine("tersely-tiny-small")


@pytest.fixture
def verifier(engine: TransformersEngine) -> Any:
    made: list[LLMVerifier] = []

    def make(model: Any = None, **options: Any) -> LLMVerifier:
        made.append(LLMVerifier(model or engine, **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


def ended(ticket: VerdictFuture) -> VerdictFuture:
    ticket.wait()
    assert ticket.done
    return ticket


def test_decoding_goes_on_until_a_verdict_is_there() -> None:
    policy, verifier = Asking(), Late()
    row = Fed(policy, verifier=verifier, prompt="2+3?")
    row.feed("a b c ")
    assert policy.seen == [(3, False), (4, False), (5, False), (6, False)] and not row.said
    verifier.tickets[0].settle(0.9)
    assert row.feed("d").text == "a b c d\n\n</think>\n\n"
    assert (verifier.asked, row.controller.verifier_tokens) == ([STATED], 7)


def test_without_a_verifier_rules_decide_and_cost_nothing() -> None:
    row = Fed(Asking()).feed("a b c d")
    assert row.text == "a b\n\n</think>\n\n"
    assert row.controller.verifier_tokens == 0
    assert Fed(Asking(VAGUE)).feed("a b c d").text == "a b c d"


@pytest.mark.parametrize(
    ("verifier", "error"),
    [
        (Broken(), "ConnectionError: nobody there"),
        (Late(patience=0.0), "no verdict in time"),
    ],
)
def test_a_verifier_that_fails_leaves_the_row_alone_and_is_traced_once(verifier: Late, error: str) -> None:
    policy = Asking()
    row = Fed(policy, type("Again", (Asking,), {"name": "again"})(), verifier=verifier).feed("a b c d e f")
    assert row.text == "a b c d e f"
    assert [(d.policy, d.action, d.reason) for d in row.controller.decisions] == [
        ("verifier", "error", f"no verdict: {error}")
    ]


def test_a_verdict_after_the_patience_no_longer_counts() -> None:
    ticket = VerdictFuture(patience=0.0)
    assert ticket.done and ticket.error == "no verdict in time"
    assert ticket.settle(1.0).yes is None
    settled = VerdictFuture(patience=60.0).settle(0.25).fail("too late")
    assert (settled.done, settled.yes, settled.error) == (True, 0.25, None)


def test_a_replay_waits_for_verdicts() -> None:
    class Slow(Late):
        def submit(self, question: Question) -> VerdictFuture:
            ticket = VerdictFuture(patience=5.0)
            threading.Timer(0.05, ticket.settle, (1.0,)).start()
            return ticket

    tokenizer, budget = WordTokenizer(), Budget("normal", 500)
    ids = tokenizer("a b c d e f")["input_ids"]
    (decision,) = replay(ids, [Asking()], tokenizer, MARKERS, budget, verifier=Slow())
    assert (decision.action, decision.position, decision.acted) == ("close", 4, False)


@pytest.mark.parametrize(
    ("first", "second", "verdict"),
    [
        ("5", "5.0", True),
        ("1/2", "0.5", True),
        ("\\frac{1}{2}", "0.50", True),
        ("-\\dfrac{3}{4}", "-0.75", True),
        ("1,000", "1000", True),
        ("50%", "1/2", None),
        ("5", "6", False),
        ("\\sqrt{12}", "2\\sqrt{3}", None),
        ("1/0", "1", None),
        ("C", "D", None),
        ("1/2/2", "0.25", None),
    ],
)
def test_equal_answers_are_found_without_a_model(first: str, second: str, verdict: bool | None) -> None:
    assert answers_equal(first, second) is verdict
    assert answers_equal(second, first) is verdict


def test_a_model_is_asked_only_what_rules_leave_open() -> None:
    beyond = Late()
    both = RuleVerifier(beyond)
    words = AnswersEqual("Which?", "So it must be the cat.", "The cat it is.")
    tickets = [both.submit(question) for question in (STATED, ALIKE, VAGUE, words)]
    assert [ticket.yes for ticket in tickets] == [1.0, 1.0, None, None]
    assert beyond.asked == [VAGUE, words]
    assert [ticket.tokens for ticket in tickets] == [0, 0, 7, 7]
    alone = RuleVerifier()
    assert [alone.submit(question).yes for question in (STATED, ALIKE, VAGUE, words)] == [1.0, 1.0, 0.0, 0.0]
    assert alone.submit(AnswersEqual("2+3?", "So I get 5.", "That makes 6.")).yes == 0.0


def test_the_chance_of_yes_is_that_of_the_next_token(
    engine: TransformersEngine, verifier: Callable[..., LLMVerifier]
) -> None:
    """Prompts of unequal length in one forward, against one forward each."""
    questions: list[Question] = [STATED, ALIKE, AnswerStated("Compute 3 + 6. " * 20, "Hm."), VAGUE]
    judge = verifier(least=0.0)
    tickets = [ended(judge.submit(question)) for question in questions]
    yes, no = reply_ids(engine.tokenizer)
    assert not set(yes) & set(no)
    assert {engine.tokenizer.decode([i]).strip()[:1] for i in yes} == {"Y", "y"}
    for question, ticket in zip(questions, tickets, strict=True):
        ids = encode_question(engine.tokenizer, question)
        with torch.no_grad():
            chances = engine.model(torch.tensor([ids])).logits[0, -1].softmax(-1)
        share = chances[yes].sum() / (chances[yes].sum() + chances[no].sum())
        assert ticket.yes == pytest.approx(float(share), rel=1e-3)
        assert (ticket.tokens, ticket.error) == (len(ids), None)


def test_a_model_that_says_neither_yes_nor_no_gives_no_verdict(verifier: Callable[..., LLMVerifier]) -> None:
    """The embedded models have learnt to answer sums, and nothing else."""
    row = Fed(policy := Asking(), verifier=(judge := verifier()), prompt="2+3?").feed("a b c")
    ended(row.controller.view.ticket)
    row.feed(" d e f")
    assert "garbage: yes and no have 0.000 of the next token" in row.last.reason
    assert row.text == "a b c d e f" and policy.seen[-1][1]
    assert row.controller.verifier_tokens == len(encode_question(judge.tokenizer, STATED))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_what_goes_wrong_in_a_model_is_written_on_the_tickets(verifier: Callable[..., LLMVerifier]) -> None:
    judge = verifier(least=0.0, patience=5.0)
    whole, judge.model = judge.model, None
    assert str(ended(judge.submit(STATED)).error).startswith("AttributeError: ")
    judge.model = whole
    assert ended(judge.submit(STATED)).error is None, "the next question is answered again"

    class Deadly:
        @property
        def device(self) -> str:
            raise SystemExit

    judge.model = Deadly()
    judge.patience = 0.2
    dying = judge.submit(STATED)
    assert ended(dying).error == "no verdict in time"
    assert judge.submit(STATED).error == "the verifier has stopped"


def test_a_closed_verifier_answers_nothing_and_what_came_too_late_is_not_read(
    verifier: Callable[..., LLMVerifier],
) -> None:
    judge = verifier(least=0.0, patience=0.0)
    late = ended(judge.submit(STATED))
    deadline = time.monotonic() + 5
    while late.tokens and time.monotonic() < deadline:
        time.sleep(0.01)
    assert (late.error, late.tokens) == ("no verdict in time", 0)
    judge.patience = 5.0
    judge.close()
    assert judge.submit(STATED).error == "the verifier has stopped"


def test_the_weights_are_shared_and_hooks_of_the_decoding_model_see_nothing(engine: TransformersEngine) -> None:
    seen: list[int] = []
    hook = engine.model.get_input_embeddings().register_forward_hook(lambda *_: seen.append(1))
    hook.remove()
    copy = clone_sharing_weights(engine.model)
    hook = engine.model.get_input_embeddings().register_forward_hook(lambda *_: seen.append(1))
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        assert torch.equal(copy(ids).logits, copy(ids).logits)
        assert not seen
        engine.model(ids)
    hook.remove()
    assert seen == [1]
    pairs = zip(copy.parameters(), engine.model.parameters(), strict=True)
    assert all(mine.data_ptr() == theirs.data_ptr() for mine, theirs in pairs)


def test_a_tokenizer_in_which_yes_and_no_look_alike_is_refused() -> None:
    class Unknowing:
        def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
            return {"input_ids": [2]}

        def decode(self, ids: list[int]) -> str:
            return "?"

    with pytest.raises(CapabilityError, match="begin with the same token"):
        LLMVerifier(type("E", (), {"model": random_model(), "tokenizer": Unknowing(), "name": "e"})())
    with pytest.raises(CapabilityError, match="'remote' has no model in this process"):
        LLMVerifier(type("E", (), {"tokenizer": letters(), "name": "remote"})())
