"""Votes on recorded answers and confidences, without a model or an engine."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from tersely.controller.sampling import resolve_rule
from tersely.controller.sampling.deepconf import DeepConf, DeepConfOffline
from tersely.controller.sampling.resampling import ProblemClass, VerifierRates
from tersely.controller.sampling.research.rules import Tree, Verified, _TreeVote
from tersely.controller.sampling.rules import (
    ROOT,
    AggregationRule,
    Branch,
    Majority,
    ShortMofK,
    Vote,
    VoteFirst,
    VoteState,
    tally,
)
from tersely.errors import OptionError

from ...support.refusals import refused

# Llama-3.1-8B on HumanEval+, arXiv 2411.17501.
LLAMA = (ProblemClass(0.58, 0.87), ProblemClass(0.42, 0.13))
TESTS = VerifierRates(1.0, 0.25)


def get_winner(vote: VoteState) -> str:
    return next(iter(vote.tally()), "")


def run_vote(
    rule: AggregationRule, answers: Sequence[str], seed: int = 0, confidences: Sequence[float] = ()
) -> tuple[VoteState, int]:
    """Finish samples in a random order, stopped ones without an answer; also return how many gave one."""
    vote, rng, given = rule.start_vote(len(answers)), random.Random(seed), 0
    while vote.start_samples():
        order = sorted(vote.running)
        for sample in order:
            if confidences:
                vote.add_token(sample, confidences[sample])
        for sample in rng.sample(order, len(order)):
            vote.close_thinking(sample)
            stopped = sample in vote.stopped
            given += not stopped
            vote.finish(sample, None if stopped else answers[sample])
    return vote, given


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
def test_tally_merges_equal_answers(spellings: list[str], votes: dict[str, float]) -> None:
    counted = tally(Vote(sample, answer) for sample, answer in enumerate(spellings))
    assert counted == votes
    assert list(counted) == list(votes), "heaviest first, then as they came"


def test_majority_stops_once_the_leader_cannot_be_overtaken() -> None:
    vote = Majority().start_vote(5)
    assert vote.start_samples() == [ROOT] * 5
    for sample, answer in ((3, "4"), (1, "5"), (0, "4")):
        vote.finish(sample, answer)
    assert not vote.decision, "2 to 1 with two to come"
    assert not vote.stopped
    vote.finish(4, "4.0")
    assert vote.decision == "4 leads 3 to 1 and at most 1 can follow"
    assert list(vote.stopped) == [2]
    vote.finish(2, None)
    assert vote.tally() == {"4": 3, "5": 1}
    assert vote.start_samples() == []


@pytest.mark.parametrize("rule", [Majority(), Majority(lazy=True)], ids=repr)
def test_stopping_early_never_changes_the_answer(rule: Majority) -> None:
    rng, fewer = random.Random(1), 0
    for seed in range(400):
        answers = [rng.choice(["1", "2", "2", ""]) for _ in range(rng.randint(1, 9))]
        sure = [rng.random() for _ in answers]
        vote, given = run_vote(rule, answers, seed, sure)
        full, all_given = run_vote(Majority(early=False), answers, seed, sure)
        assert get_winner(vote) == get_winner(full)
        assert all_given == len(answers)
        fewer += given < len(answers)
        assert bool(vote.decision) == (given < len(answers))
    assert fewer > 50


def test_lazy_majority_starts_only_as_many_samples_as_could_settle_it() -> None:
    vote = Majority(lazy=True).start_vote(5)
    assert len(vote.start_samples()) == 3
    for sample, answer in enumerate("778"):
        vote.finish(sample, answer)
    assert len(vote.start_samples()) == 1, "one more vote for 7 would settle it"
    vote.finish(3, "8")
    assert len(vote.start_samples()) == 1
    vote.finish(4, "8")
    assert vote.tally() == {"8": 3, "7": 2}
    assert vote.start_samples() == []
    with pytest.raises(OptionError):
        Majority(early=False, lazy=True)


def test_ties_go_to_the_sample_that_began_first() -> None:
    vote = Majority().start_vote(2)
    vote.start_samples()
    vote.finish(1, "8")
    vote.finish(0, "7")
    assert list(vote.tally()) == ["7", "8"]
    assert vote.explain() == "7 has 1 of 2 votes"


def test_short_counts_only_the_first_to_finish_thinking() -> None:
    vote = ShortMofK(m=3).start_vote(5)
    vote.start_samples()
    vote.finish(1, "9")  # was cut within its thinking
    for sample in (4, 2):
        vote.close_thinking(sample)
    assert not vote.stopped
    vote.close_thinking(0)
    assert vote.stopped == {3: "3 others have finished thinking"}
    vote.close_thinking(3)
    for sample, answer in ((0, "5"), (2, "6"), (3, "5")):  # the last ended before it could be stopped
        vote.finish(sample, answer)
    assert not vote.decision
    vote.finish(4, "7")
    assert list(vote.tally()) == ["7", "6", "5"], "ties go to the shorter thinking"
    for m in (0, 6):
        with pytest.raises(OptionError):
            ShortMofK(m=m).start_vote(5)


def test_short_is_settled_by_two_of_three() -> None:
    vote = ShortMofK(m=3).start_vote(5)
    vote.start_samples()
    for sample in (1, 2):
        vote.close_thinking(sample)
        vote.finish(sample, "8")
    assert vote.decision == "8 leads 2 to 0 and at most 1 can follow"
    assert list(vote.stopped) == [0, 3, 4]


def test_thinking_begins_where_answers_without_it_differ() -> None:
    quick = Branch(effort="none")
    vote = VoteFirst().start_vote(5)
    assert vote.start_samples() == [quick] * 3
    for sample, answer in ((2, "7"), (0, "7.0"), (1, "7")):
        assert not vote.decision
        vote.finish(sample, answer)
    assert vote.decision and vote.start_samples() == [] and vote.tally() == {"7": 3}
    for answers in ("778", ["7", "7", ""]):
        torn = VoteFirst().start_vote(6)
        torn.start_samples()
        for sample, answer in enumerate(answers):
            torn.finish(sample, answer)
        assert not torn.decision and torn.start_samples() == [ROOT] * 3
        torn.finish(4, "8")
        assert torn.tally() == {"8": 1}, "only those that have thought"
        torn.finish(3, "8")
        assert torn.stopped.keys() == {5}
    with pytest.raises(OptionError):
        VoteFirst(first=5).start_vote(5)


def run_sample(vote: VoteState, sample: int, values: Sequence[float], answer: str) -> None:
    """Run a whole sample, which ends where it is stopped."""
    for value in values:
        if sample in vote.stopped:
            vote.finish(sample, None)
            return
        vote.add_token(sample, value)
    vote.finish(sample, answer)


def start_after_warmup(rule: DeepConf, answers: str = "112") -> Any:
    """A vote after a warm-up of three samples with scores 0.8, 0.6 and 0.4."""
    vote = rule.start_vote(6)
    assert len(vote.start_samples()) == 3
    for sample, (worth, answer) in enumerate(zip((0.8, 0.6, 0.4), answers, strict=True)):
        run_sample(vote, sample, [0.9, worth, worth, 0.9], answer)
    assert not vote.stopped, "the warm-up runs to its end"
    return vote


def test_deepconf_stops_samples_below_the_threshold() -> None:
    vote = start_after_warmup(DeepConf(keep=50, window=2), "122")
    assert len(vote.start_samples()) == 3
    assert vote.threshold == pytest.approx(0.6)
    run_sample(vote, 3, [0.9, 0.9, 0.2, 0.9], "2")
    assert vote.stopped == {3: "confidence 0.550 over 2 tokens, threshold 0.600"}
    run_sample(vote, 4, [0.9, 0.1, 0.9, 0.1], "2")
    assert list(vote.stopped) == [3, 4]
    run_sample(vote, 5, [0.3, 0.95, 0.7], "2")
    assert 5 not in vote.stopped, "a single token does not fill the window"
    assert vote.tally() == pytest.approx({"2": 1.225, "1": 0.8}), (
        "weighted by score, warm-up samples below the bar left out"
    )


def test_deepconf_threshold_is_a_percentile_of_the_warmup() -> None:
    high, low = (start_after_warmup(DeepConf(keep=keep, window=2)) for keep in (90, 10))
    high.start_samples(), low.start_samples()
    assert high.threshold == pytest.approx(np.percentile([0.8, 0.6, 0.4], 10))
    assert low.threshold == pytest.approx(np.percentile([0.8, 0.6, 0.4], 90))


def test_deepconf_ends_at_consensus() -> None:
    vote = start_after_warmup(DeepConf(keep=50, window=2), "115")
    assert vote.start_samples() == [], "both that reach the bar agree"
    assert vote.decision == "1 has 100% of the votes cast"
    torn = start_after_warmup(DeepConf(keep=90, window=2, consensus=0.7), "121")
    assert len(torn.start_samples()) == 3, "0.8 of 1.4"
    run_sample(torn, 3, [0.9] * 4, "1")
    assert torn.decision == "1 has 74% of the votes cast"


def test_deepconf_answers_even_if_no_sample_reaches_the_threshold() -> None:
    vote = start_after_warmup(DeepConf(warmup=3, keep=0, window=2), ["", "", "2"])  # type: ignore[arg-type]
    vote.start_samples()
    for sample in (3, 4, 5):
        run_sample(vote, sample, [0.1, 0.1, 0.1], "3")
    assert len(vote.stopped) == 3
    assert vote.tally() == pytest.approx({"2": 0.4})


@pytest.mark.parametrize(
    ("rule", "k"),
    [
        (DeepConf(warmup=5), 5),
        (DeepConf(), 1),
        (DeepConf(keep=101), 9),
        (DeepConf(consensus=0), 9),
        (DeepConf(window=0), 9),
        (DeepConfOffline(keep=101), 9),
        (DeepConfOffline(measure="median"), 9),  # type: ignore[arg-type]
    ],
)
def test_deepconf_refuses_bad_settings(rule: DeepConf | DeepConfOffline, k: int) -> None:
    with pytest.raises(OptionError):
        rule.start_vote(k)


def judge_attempts(penalty: float, k: int, passing: Sequence[bool]) -> Any:
    """Make attempts until the vote is over; `passing` is what the verifier says in turn."""
    verdicts = iter(passing)
    vote = Verified(lambda prompt, result: next(verdicts), TESTS, LLAMA, penalty).start_vote(k)
    result: Any = None
    while vote.start_samples():
        (sample,) = vote.running
        vote.finish(sample, str(sample))
        vote.judge(sample, "", result)
    return vote


def test_verified_stops_when_an_attempt_passes_or_the_next_would_be_a_loss() -> None:
    assert judge_attempts(4, 9, [True]).tally() == {"0": 1}
    once = judge_attempts(4, 9, [False] * 9)
    assert (once.started, once.tally()) == (1, {})
    assert once.explain() == "given up after 1 attempts: one more would be a loss"
    free = judge_attempts(0, 4, [False] * 4)
    assert (free.started, free.explain()) == (4, "given up after 4 attempts: no more are allowed")
    third = judge_attempts(0, 9, [False, False, True])
    assert (third.started, third.tally(), third.explain()) == (3, {"2": 1}, "attempt 3 passed")
    assert judge_attempts(1000, 9, []).started == 0, "not even one is worth it"


def test_tree_forks_before_the_least_confident_thought() -> None:
    vote = Tree(roots=2, width=2).start_vote(7)
    assert vote.start_samples() == [ROOT] * 2
    vote.finish(0, "1", [(10, 0.3), (20, 0.8), (30, 0.6)])
    vote.finish(1, "2", [(12, 0.9), (24, 0.5)])
    assert vote.start_samples() == [Branch(1, 12)] * 2, "not at the start, where nothing would be kept"
    vote.finish(2, "1", [(12, 0.9), (24, 0.1)])
    vote.finish(3, "2", [])
    assert vote.start_samples() == [Branch(0, 20)] * 2, "each fork once"
    vote.finish(4, "1", [])
    vote.finish(5, "2", [])
    assert vote.start_samples() == [Branch(0, 10)], "as many as there may be"
    vote.finish(6, "2", [])
    assert vote.start_samples() == []
    assert list(vote.tally()) == ["2", "1"]


def finish_chain(vote: VoteState) -> VoteState:
    """A sample, a branch after 10 of its tokens, and one after 18 tokens of that."""
    assert vote.start_samples() == [ROOT]
    vote.finish(0, "1", [(10, 0.9), (20, 0.5)])
    assert vote.start_samples() == [Branch(0, 10)]
    vote.finish(1, "1.0", [(10, 0.9), (18, 0.2), (30, 0.9)])
    assert vote.start_samples() == [Branch(1, 18)], "not after 10 tokens, where its parent has a branch already"
    vote.finish(2, "2")
    return vote


def test_tree_backs_up_soft_means_of_the_shares_that_agree() -> None:
    vote = finish_chain(Tree(roots=1, width=1, backup=3 * math.log(2)).start_vote(6))
    assert isinstance(vote, _TreeVote)
    # The samples are worth 2/3, 2/3 and 1/3, so 2 ** (3 * v) is 4, 4 and 2; after 18 tokens it is the mean of 4 and 2,
    # and after 10 tokens that of 4 and 3.
    assert vote.value(0, 11) == pytest.approx(2 / 3)
    assert vote.value(2, 18) == pytest.approx(1 / 3)
    assert vote.value(1, 18) == vote.value(1, 10) == pytest.approx(math.log2(3) / 3)
    assert vote.value(0, 10) == vote.value(0, 0) == pytest.approx(math.log2(3.5) / 3)


@pytest.mark.parametrize(("backup", "value"), [(1e-6, (2 / 3 + 1 / 2) / 2), (1e4, 2 / 3)])
def test_backup_goes_from_the_mean_to_the_maximum(backup: float, value: float) -> None:
    vote = finish_chain(Tree(roots=1, width=1, backup=backup).start_vote(6))
    assert isinstance(vote, _TreeVote)
    assert vote.value(0, 0) == pytest.approx(value, abs=1e-3)


def test_samples_without_an_answer_are_worth_nothing() -> None:
    vote = Tree(backup=1).start_vote(4)
    vote.start_samples()
    vote.finish(0, "")
    vote.finish(1, "7")
    assert isinstance(vote, _TreeVote)
    assert (vote.value(0, 0), vote.value(1, 0)) == (0, 0.5)


@pytest.mark.parametrize(("backup", "fork"), [(None, Branch(0, 10)), (5.0, Branch(2, 25))])
def test_tree_forks_where_values_are_highest(backup: float | None, fork: Branch) -> None:
    vote = Tree(backup=backup).start_vote(9)
    vote.start_samples()
    vote.finish(0, "1", [(10, 0.9), (20, 0.5)])
    vote.finish(1, "2", [(10, 0.9), (20, 0.3)])
    assert vote.start_samples() == [Branch(1, 10)] * 2, "both are worth a half, so confidence decides"
    vote.finish(2, "2", [(25, 0.9), (30, 0.8)])
    vote.finish(3, "2", [(26, 0.9), (30, 0.9)])
    assert vote.start_samples() == [fork] * 2
    with pytest.raises(OptionError):
        Tree(backup=0)


def test_tree_stops_at_its_token_limit() -> None:
    vote = Tree(most_tokens=5).start_vote(4)
    vote.start_samples()
    for _ in range(2):
        vote.add_token(0, 0.5)
        vote.add_token(1, 0.5)
    assert not vote.stopped
    vote.add_token(0, 0.5)
    assert list(vote.stopped) == [0, 1]
    vote.finish(0, None)
    vote.finish(1, None)
    assert vote.start_samples() == []
    with pytest.raises(OptionError):
        Tree(roots=5).start_vote(4)


def test_resolve_rule_knows_names_add_ons_and_objects() -> None:
    assert resolve_rule("short") == ShortMofK()
    assert resolve_rule("tree") == Tree(), "an add-on, found by its entry point"
    assert resolve_rule(rule := Majority(lazy=True)) is rule
    with refused(OptionError, "unknown_name"):
        resolve_rule("majorety")
