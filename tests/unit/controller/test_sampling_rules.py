"""Votes, bars and attempts on recorded answers and confidences: no model, no engine."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from tersely.controller.sampling.confidence import ConfidenceTracker
from tersely.controller.sampling.deepconf import DeepConf, DeepConfVote, percentile
from tersely.controller.sampling.majority import Majority, ShortMofK
from tersely.controller.sampling.research.resampling import (
    ProblemClass,
    VerifierRates,
    accuracy_ceiling,
    accuracy_limit,
    attempt_value,
    policy_outcome,
)
from tersely.controller.sampling.research.verified import Verified, VerifiedVote
from tersely.controller.sampling.vote import ROOT, AggregationRule, Vote, VoteState, tally
from tersely.errors import OptionError

# Llama-3.1-8B on HumanEval+, arXiv 2411.17501.
LLAMA = (ProblemClass(0.58, 0.87), ProblemClass(0.42, 0.13))
TESTS = VerifierRates(1.0, 0.25)


def winner(poll: VoteState) -> str:
    return next(iter(poll.votes()), "")


def run(
    rule: AggregationRule, answers: Sequence[str], seed: int = 0, confidences: Sequence[float] = ()
) -> tuple[VoteState, int]:
    """Let samples end in a random order, those that were stopped without an answer; how many gave one."""
    poll, rng, given = rule.poll(len(answers)), random.Random(seed), 0
    while poll.draw():
        order = sorted(poll.live)
        for sample in order:
            if confidences:
                poll.read(sample, confidences[sample])
        for sample in rng.sample(order, len(order)):
            poll.closed(sample)
            stopped = sample in poll.stopped
            given += not stopped
            poll.ended(sample, None if stopped else answers[sample])
    return poll, given


@pytest.mark.parametrize(
    ("spellings", "votes"),
    [
        (["1/2", "0.50", "\\frac{1}{2}", "2"], {"1/2": 3, "2": 1}),
        (["0.50", "1/2"], {"0.5": 2}),
        (["1,000", "$1000", "1000.", "1001"], {"1000": 3, "1001": 1}),
        (["50%", "0.5", "1/2"], {"0.5": 2, "50%": 1}),
        (["x + 1", "x  + 1", ""], {"x + 1": 2}),
        (["7", "8", "8", "7"], {"7": 2, "8": 2}),
    ],
)
def test_equal_answers_are_one(spellings: list[str], votes: dict[str, float]) -> None:
    counted = tally(Vote(sample, answer) for sample, answer in enumerate(spellings))
    assert counted == votes
    assert list(counted) == list(votes), "heaviest first, then as they came"


def test_a_majority_is_settled_when_it_cannot_be_overtaken() -> None:
    poll = Majority().poll(5)
    assert poll.draw() == [ROOT] * 5
    for sample, answer in ((3, "4"), (1, "5"), (0, "4")):
        poll.ended(sample, answer)
    assert not poll.decided, "2 to 1 with two to come"
    assert not poll.stopped
    poll.ended(4, "4.0")
    assert poll.decided == "4 leads 3 to 1 and at most 1 can follow"
    assert list(poll.stopped) == [2]
    poll.ended(2, None)
    assert poll.votes() == {"4": 3, "5": 1}
    assert poll.draw() == []


@pytest.mark.parametrize("rule", [Majority(), Majority(by_confidence=True), Majority(lazy=True)], ids=repr)
def test_stopping_early_never_changes_the_answer(rule: Majority) -> None:
    rng, fewer = random.Random(1), 0
    for seed in range(400):
        answers = [rng.choice(["1", "2", "2", ""]) for _ in range(rng.randint(1, 9))]
        sure = [rng.random() for _ in answers]
        poll, given = run(rule, answers, seed, sure)
        full, all_given = run(Majority(rule.by_confidence, early=False), answers, seed, sure)
        assert winner(poll) == winner(full)
        assert all_given == len(answers)
        fewer += given < len(answers)
        assert bool(poll.decided) == (given < len(answers))
    assert fewer > 50


def test_a_lazy_vote_begins_as_many_as_could_settle_it() -> None:
    poll = Majority(lazy=True).poll(5)
    assert len(poll.draw()) == 3
    for sample, answer in enumerate("778"):
        poll.ended(sample, answer)
    assert len(poll.draw()) == 1, "one more vote for 7 would settle it"
    poll.ended(3, "8")
    assert len(poll.draw()) == 1
    poll.ended(4, "8")
    assert poll.votes() == {"8": 3, "7": 2}
    assert poll.draw() == []
    with pytest.raises(OptionError, match="early=True"):
        Majority(early=False, lazy=True)


def test_ties_go_to_the_sample_that_began_first() -> None:
    poll = Majority().poll(2)
    poll.draw()
    poll.ended(1, "8")
    poll.ended(0, "7")
    assert list(poll.votes()) == ["7", "8"]
    assert poll.verdict() == "7 has 1 of 2 votes"


def test_confidence_weighs_votes() -> None:
    poll, _ = run(Majority(by_confidence=True), ["1", "1", "2"], confidences=[0.2, 0.3, 0.9])
    assert poll.votes() == pytest.approx({"2": 0.9, "1": 0.5})


def test_the_first_to_finish_thinking_vote() -> None:
    poll = ShortMofK(m=3).poll(5)
    poll.draw()
    poll.ended(1, "9")  # was cut within its thinking
    for sample in (4, 2):
        poll.closed(sample)
    assert not poll.stopped
    poll.closed(0)
    assert poll.stopped == {3: "3 others have finished thinking"}
    poll.closed(3)
    for sample, answer in ((0, "5"), (2, "6"), (3, "5")):  # the last ended before it could be stopped
        poll.ended(sample, answer)
    assert not poll.decided
    poll.ended(4, "7")
    assert list(poll.votes()) == ["7", "6", "5"], "ties go to the shorter thinking"
    for m in (0, 6):
        with pytest.raises(OptionError, match=f"m is {m} of 5 samples"):
            ShortMofK(m=m).poll(5)


def test_two_of_three_short_ones_settle_it() -> None:
    poll = ShortMofK(m=3).poll(5)
    poll.draw()
    for sample in (1, 2):
        poll.closed(sample)
        poll.ended(sample, "8")
    assert poll.decided == "8 leads 2 to 0 and at most 1 can follow"
    assert list(poll.stopped) == [0, 3, 4]


def test_a_meter_knows_its_lowest_window() -> None:
    rng = random.Random(0)
    values = [rng.random() for _ in range(200)]
    meter = ConfidenceTracker(16)
    for value in values[:10]:
        meter.add(value)
    assert not meter.full
    assert meter.least == pytest.approx(np.mean(values[:10])), "shorter than the window: judged as a whole"
    for value in values[10:]:
        meter.add(value)
    assert meter.least == pytest.approx(np.convolve(values, np.ones(16) / 16, "valid").min())
    assert meter.group == pytest.approx(np.mean(values[-16:]))
    assert meter.mean == pytest.approx(np.mean(values))


def test_percentiles_are_those_of_numpy() -> None:
    values = [0.4, 0.9, 0.1, 0.7, 0.75]
    for percent in (0, 10, 37.5, 50, 90, 100):
        assert percentile(values, percent) == pytest.approx(np.percentile(values, percent))
    assert percentile([0.3], 90) == 0.3


def feed(poll: VoteState, sample: int, values: Sequence[float], answer: str) -> None:
    """A whole sample, which ends where it is stopped."""
    for value in values:
        if sample in poll.stopped:
            poll.ended(sample, None)
            return
        poll.read(sample, value)
    poll.ended(sample, answer)


def warmed(rule: DeepConf, answers: str = "112") -> DeepConfVote:
    """After a warm-up of three samples that are worth 0.8, 0.6 and 0.4."""
    poll = rule.poll(6)
    assert isinstance(poll, DeepConfVote)
    assert len(poll.draw()) == 3
    for sample, (worth, answer) in enumerate(zip((0.8, 0.6, 0.4), answers, strict=True)):
        feed(poll, sample, [0.9, worth, worth, 0.9], answer)
    assert not poll.stopped, "the warm-up runs to its end"
    return poll


def test_samples_below_the_bar_are_stopped_and_do_not_vote() -> None:
    poll = warmed(DeepConf(keep=50, window=2), "122")
    assert len(poll.draw()) == 3
    assert poll.bar == pytest.approx(0.6)
    feed(poll, 3, [0.9, 0.9, 0.2, 0.9], "2")
    assert poll.stopped == {3: "confidence 0.550 over 2 tokens, bar 0.600"}
    feed(poll, 4, [0.9, 0.1, 0.9, 0.1], "2")
    assert list(poll.stopped) == [3, 4]
    feed(poll, 5, [0.3, 0.95, 0.7], "2")
    assert 5 not in poll.stopped, "a single token is no window"
    assert poll.votes() == pytest.approx({"2": 1.225, "1": 0.8}), "by worth, warm-up samples below the bar left out"


def test_keep_is_the_share_that_would_have_stayed() -> None:
    high, low = (warmed(DeepConf(keep=keep, window=2)) for keep in (90, 10))
    high.draw(), low.draw()
    assert high.bar == pytest.approx(np.percentile([0.8, 0.6, 0.4], 10))
    assert low.bar == pytest.approx(np.percentile([0.8, 0.6, 0.4], 90))


def test_consensus_ends_it_after_the_warm_up() -> None:
    poll = warmed(DeepConf(keep=50, window=2), "115")
    assert poll.draw() == [], "both that reach the bar agree"
    assert poll.decided == "1 has 100% of the votes cast"
    torn = warmed(DeepConf(keep=90, window=2, consensus=0.7), "121")
    assert len(torn.draw()) == 3, "0.8 of 1.4"
    feed(torn, 3, [0.9] * 4, "1")
    assert torn.decided == "1 has 74% of the votes cast"


def test_someone_answers_even_if_none_is_sure() -> None:
    poll = warmed(DeepConf(warmup=3, keep=0, window=2), ["", "", "2"])  # type: ignore[arg-type]
    poll.draw()
    for sample in (3, 4, 5):
        feed(poll, sample, [0.1, 0.1, 0.1], "3")
    assert len(poll.stopped) == 3
    assert poll.votes() == pytest.approx({"2": 0.4})


@pytest.mark.parametrize(
    ("rule", "k"),
    [
        (DeepConf(warmup=5), 5),
        (DeepConf(), 1),
        (DeepConf(keep=101), 9),
        (DeepConf(consensus=0), 9),
        (DeepConf(window=0), 9),
    ],
)
def test_settings_of_deepconf_are_checked(rule: DeepConf, k: int) -> None:
    with pytest.raises(OptionError, match="accepted: "):
        rule.poll(k)


def test_the_worked_example_of_flaws() -> None:
    assert [accuracy_limit(kind.rate, TESTS) for kind in LLAMA] == pytest.approx([0.964, 0.374], abs=5e-4)
    assert accuracy_ceiling(LLAMA, TESTS) == pytest.approx(0.716, abs=5e-4)
    values = [attempt_value(attempt, LLAMA, TESTS, penalty=4) for attempt in (1, 2)]
    assert values == pytest.approx([0.118, -0.161], abs=5e-4)


def judged(penalty: float, k: int, passing: Sequence[bool]) -> VerifiedVote:
    """Attempts until the poll is over, the verifier saying in turn what it is to say."""
    said = iter(passing)
    poll = Verified(lambda prompt, generation: next(said), TESTS, LLAMA, penalty).poll(k)
    assert isinstance(poll, VerifiedVote)
    generation: Any = None
    while poll.draw():
        (sample,) = poll.live
        poll.ended(sample, str(sample))
        poll.judge(sample, "", generation)
    return poll


def test_attempts_go_on_until_one_passes_or_the_next_would_lose() -> None:
    assert judged(4, 9, [True]).votes() == {"0": 1}
    once = judged(4, 9, [False] * 9)
    assert (once.begun, once.votes()) == (1, {})
    assert once.verdict() == "given up after 1 attempts: one more would be a loss"
    free = judged(0, 4, [False] * 4)
    assert (free.begun, free.verdict()) == (4, "given up after 4 attempts: no more are allowed")
    third = judged(0, 9, [False, False, True])
    assert (third.begun, third.votes(), third.verdict()) == (3, {"2": 1}, "attempt 3 passed")
    assert judged(1000, 9, []).begun == 0, "not even one is worth it"
    assert policy_outcome(LLAMA[0].rate, TESTS, 1).wrong > 0
