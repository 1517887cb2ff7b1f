"""TrimR: sparse segments, the counter and the vote, giving up, endings, and verdicts that come late or never."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from tersely.controller.budgets import Budget
from tersely.controller.controller import Controller
from tersely.controller.engines.transformers.engine import load_engine
from tersely.controller.options import GenerationOptions
from tersely.controller.policies import get_presets, make_policies
from tersely.controller.policies.exits import BudgetForcing
from tersely.controller.policies.trimr import TrimR
from tersely.controller.session import Session
from tersely.controller.types import Request, SamplingParams
from tersely.controller.verification import (
    AnswersEqual,
    AnswerStated,
    NoVerdictError,
    Question,
    RuleVerifier,
    VerdictFuture,
)
from tersely.controller.verifiers import LLMVerifier
from tersely.errors import OptionError

from ...support.policy_feeding import Fed
from ...support.refusals import refused

SETTINGS = dict(get_presets()["trimr"]["trimr"])
COUNTER = TrimR(**{**SETTINGS, "share": 9.0})
VOTE = TrimR(share=9.0)
FILLER = "one two three four five six seven eight. "


def thinking(answers: Sequence[str]) -> str:
    """A segment that concludes with each answer, each but the first after a cue; "-" concludes nothing."""
    said = [f"{FILLER}So the answer is {a}." if a != "-" else f"{FILLER}Nothing yet." for a in answers]
    return "\n\n".join(f"Wait, {s}" if i else s for i, s in enumerate(said)) + f"\n\nWait, {FILLER}{FILLER}"


def stop(policy: TrimR, answers: str, **options: Any) -> int | None:
    """After which segment the policy stops; a letter an answer."""
    numbers = [a if a == "-" else str(ord(a)) for a in answers]
    row = Fed(policy, thinking=options.pop("thinking", 10_000), **options).feed(thinking(numbers))
    if not row.said:
        return None
    return row.text[: row.text.index(row.controller.decisions[0].text)].count("Wait,")


@pytest.mark.parametrize(
    ("answers", "counter", "vote"),
    [
        ("AAA", 3, 3),
        ("AABAA", None, 4),
        ("AABAAA", 6, 4),
        ("ABABA", None, 5),
        ("AAB", None, None),
        ("ABCABC", None, None),
        ("ABCDA", None, None),
        ("A-A-A", 5, 5),
        ("---", None, None),
        ("ABBB", 4, 4),
        ("ABCAA", None, 5),
        ("ABACDA", None, None),
    ],
)
def test_the_counter_wants_three_in_a_row_and_the_vote_three_of_five(
    answers: str, counter: int | None, vote: int | None
) -> None:
    assert stop(COUNTER, answers[: counter or None]) == counter
    assert stop(VOTE, answers) == vote
    if counter:
        assert stop(COUNTER, answers[: counter - 1]) is None


class Listening:
    """Decides by rules and keeps the questions."""

    timeout = None

    def __init__(self) -> None:
        self.asked: list[Question] = []

    def submit(self, question: Question) -> VerdictFuture:
        self.asked.append(question)
        return RuleVerifier().submit(question)

    def close(self) -> None:
        pass


def test_the_verifier_reads_a_few_sentences_of_each_segment_only() -> None:
    verifier = Listening()
    text = "".join(f"{FILLER * 30}\n\nIt is {n}.\n\nSo the answer is {n}.\n\nWait, so. " for n in (1, 2))
    Fed(COUNTER, thinking=10_000, verifier=verifier, prompt="How many?").feed(text + FILLER)
    first, second = (q for q in verifier.asked if isinstance(q, AnswerStated))
    assert first.question == "How many?"
    assert first.ending == " ".join([FILLER.strip()] * 3 + ["It is 1.", "So the answer is 1."])
    (same,) = (q for q in verifier.asked if isinstance(q, AnswersEqual))
    assert (same.first, same.second) == (first.ending, second.ending)


def test_the_counter_asks_of_neighbours_and_the_vote_of_what_can_still_win() -> None:
    verifier = Listening()
    answers = ["1", "2", "3", "4", "1", "4"]
    Fed(COUNTER, thinking=10_000, verifier=verifier).feed(thinking(answers))
    assert sum(isinstance(q, AnswersEqual) for q in verifier.asked) == 5
    verifier.asked.clear()
    Fed(VOTE, thinking=10_000, verifier=verifier).feed(thinking(answers))
    assert sum(isinstance(q, AnswersEqual) for q in verifier.asked) == 1 + 2 + 3 + 3 + 3


def test_only_a_paragraph_that_opens_with_a_cue_begins_a_segment() -> None:
    verifier = Listening()
    Fed(COUNTER, verifier=verifier).feed(f"{FILLER}Wait, {FILLER}But {FILLER}\n\nWaiting for it. {FILLER}\n\nSo on. ")
    assert verifier.asked == []
    Fed(COUNTER, verifier=verifier).feed(f"{FILLER}\n\nBut no, that is it. {FILLER}")
    assert len(verifier.asked) == 1
    Fed(VOTE, verifier=verifier).feed(f"{FILLER}\n\nBut no, that is it. {FILLER}")
    assert len(verifier.asked) == 1, "our own list of cues has no bare 'but'"


@pytest.mark.parametrize(
    ("policy", "segments", "stops"),
    [
        (TrimR(share=9.0), 20, 20),
        (TrimR(share=9.0), 19, None),
        (TrimR(share=0.2), 4, 4),
        (TrimR(share=0.2), 3, None),
        (TrimR(share=0.2, floor=0), 3, 2),
        (TrimR(share=0.2, both=True), 19, None),
        (TrimR(share=0.2, both=True), 20, 20),
    ],
)
def test_thinking_that_comes_to_no_agreement_is_given_up(policy: TrimR, segments: int, stops: int | None) -> None:
    one, two = (len(Fed().codec.encode(thinking(answers))) for answers in ("A", "AB"))
    budget = (two - one) * 8
    assert stop(policy, "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[:segments], thinking=budget) == stops


def test_giving_up_is_a_forced_ending() -> None:
    row = Fed(TrimR(share=0.1), thinking=800).feed(thinking("ABCDE"))
    assert row.text.endswith("I have thought enough and answer now.\n</think>\n\n")
    assert row.last.reason.startswith("no agreement after 4 segments, ")


def test_a_mild_ending_lets_the_model_conclude_by_itself() -> None:
    text = thinking(["5"] * 3)
    row = Fed(TrimR(**{**SETTINGS, "share": 9.0, "floor": 4})).feed(text)
    assert row.said == [("trimr", "inject")]
    assert row.forced == ["\n\n**Final answer**\n\n"]
    row.feed(FILLER * 40 + "</think>5.")
    assert row.said == [("trimr", "inject")] and row.text.endswith("</think>5.")


def test_a_model_that_does_not_conclude_has_its_grace() -> None:
    row = Fed(TrimR(header="So:", grace=20, share=9.0)).feed(thinking(["5"] * 3) + FILLER * 10)
    assert row.said == [("trimr", "inject"), ("trimr", "close")]
    inject, close = row.controller.decisions
    assert 20 <= close.position - inject.position - len(row.codec.encode(inject.text)) < 60
    assert close.text.strip() == "</think>"


def test_our_own_ending_closes_at_the_end_of_a_sentence() -> None:
    row = Fed(VOTE).feed(thinking(["5"] * 3))
    assert row.text.endswith(f"\n\nWait, {FILLER.strip()}\n\n</think>\n\n")
    assert row.last.reason == "3 of the last 5 stated answers agree"


class Delayed(Listening):
    """Sets its verdicts only when `settle` is called."""

    def __init__(self) -> None:
        super().__init__()
        self.futures: list[VerdictFuture] = []

    def submit(self, question: Question) -> VerdictFuture:
        self.asked.append(question)
        self.futures.append(VerdictFuture(tokens=11))
        return self.futures[-1]

    def settle(self) -> None:
        for question, future in zip(self.asked, self.futures, strict=True):
            if not future.done():
                future.set_result(RuleVerifier().submit(question).result())


def test_decoding_never_waits_and_verdicts_take_effect_late() -> None:
    verifier = Delayed()
    row = Fed(VOTE, thinking=10_000, verifier=verifier).feed(thinking(["5"] * 4) + FILLER * 20)
    assert len(verifier.asked) == 1 and row.said == []
    for _ in range(9):
        verifier.settle()
        row.feed(FILLER)
    assert row.said == [("trimr", "close")]
    assert len(verifier.asked) == 3 + 2
    assert row.controller.questions.tokens == 55


def test_without_verdicts_nothing_stops_but_the_budget() -> None:
    class Silent(Delayed):
        def submit(self, question: Question) -> VerdictFuture:
            future = super().submit(question)
            future.set_exception(NoVerdictError("gone"))
            return future

    row = Fed(BudgetForcing(), VOTE, thinking=400, verifier=Silent()).feed(thinking(["5"] * 30))
    assert row.said == [("verifier", "error"), ("budget", "close")]


def test_settings_that_can_never_agree_are_refused() -> None:
    with refused(OptionError):
        TrimR(agree=6)


def test_a_model_is_followed_live_with_rules_first_and_a_model_for_the_rest() -> None:
    """The embedded model as its own verifier has no yes or no in it: rules decide, the rest is traced."""
    engine = load_engine("tersely-tiny-small")
    verifier = RuleVerifier(LLMVerifier(engine))
    policies = [TrimR(agree=2, window=2, share=9.0)]
    try:
        session = Session(engine)
        rows = session.prepare(["Set a to 6 + 4. What is a?", "Compute 48 + 27."], GenerationOptions(preset="off"))
        budget = Budget("normal", 400)
        controllers = [Controller(policies, session.codec, session.markers, budget, verifier=verifier) for _ in rows]
        requests = [Request(r.request.prompt_ids, 464, c) for r, c in zip(rows, controllers, strict=True)]
        done = engine.generate(requests, SamplingParams(temperature=0))
    finally:
        verifier.close()
    assert all(session.codec.decode(one.token_ids).count("</think>") == 1 for one in done)
    assert [d.reason for c in controllers for d in c.decisions if d.action == "close"]


def test_the_preset_is_the_papers() -> None:
    made = {p.name: p for p in make_policies("trimr")}
    assert list(made) == ["budget", "trimr", "repetition"]
    trim: Any = made["trimr"]
    assert (trim.agree, trim.window, trim.share, trim.most, trim.floor, trim.both) == (3, 3, 0.5, 20, 0, False)
