"""DeepConf: its constants, and its statistics and votes worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from tersely.controller.engines.openai import signals_from_logprobs
from tersely.controller.engines.transformers.hooks import compute_signals
from tersely.controller.sampling import deepconf
from tersely.controller.sampling.deepconf import DeepConf, DeepConfOffline, Measure, measure_confidence, window_means
from tersely.controller.sampling.rules import VoteState
from tersely.controller.types import TOP

CONFIDENCES = [2.0, 4.0, 6.0, 1.0, 3.0, 8.0]  # in groups of 2: 3, 5, 3.5, 2, 5.5


def test_the_published_constants() -> None:
    assert (TOP, deepconf.WARMUP, deepconf.WINDOW, deepconf.BOTTOM) == (20, 16, 2048, 0.1)
    assert (DeepConf().window, DeepConf().keep, DeepConf().consensus) == (2048, 90.0, 0.95)
    assert (DeepConfOffline().window, DeepConfOffline().keep, DeepConfOffline().measure) == (2048, 10.0, "tail")
    vote = DeepConf().start_vote(256)
    assert len(vote.start_samples()) == 16


def test_a_tokens_confidence_is_minus_the_mean_log_probability_of_the_20_likeliest() -> None:
    """Of odds 1, 2, ..., 30, the likeliest are 11 to 30; the sum of all is 465."""
    logits = torch.arange(1.0, 31.0).log()[None]
    wanted = math.log(465) - sum(math.log(odds) for odds in range(11, 31)) / 20
    (signals,) = compute_signals(logits, torch.tensor([3]), confidence=True)
    assert signals.confidence == pytest.approx(wanted, rel=1e-5)
    assert math.isnan(compute_signals(logits, torch.tensor([3]))[0].confidence)
    logprobs = [math.log(odds / 465) for odds in range(30, 9, -1)]  # one more than asked for: that of the token itself
    assert signals_from_logprobs(logprobs[-1], logprobs).confidence == pytest.approx(wanted)
    assert math.isnan(signals_from_logprobs(logprobs[0], logprobs[:2]).confidence)


@pytest.mark.parametrize(("measure", "wanted"), [("mean", 4.0), ("tail", 5.5), ("lowest", 2.0), ("bottom", 2.0)])
def test_a_samples_confidence(measure: Measure, wanted: float) -> None:
    assert measure_confidence(CONFIDENCES, measure, 2) == pytest.approx(wanted)
    assert measure_confidence(CONFIDENCES, measure, 7) == pytest.approx(4.0), "shorter than a group: the mean"
    assert measure_confidence([], measure, 2) == 0.0


def test_groups_slide_by_one_token_and_the_bottom_is_a_tenth_of_them() -> None:
    assert window_means(CONFIDENCES, 2) == pytest.approx([3, 5, 3.5, 2, 5.5])
    rising = [float(n) for n in range(1, 31)]  # 29 groups of 2: 1.5, 2.5, ..., of which int(2.9) are the bottom
    assert measure_confidence(rising, "bottom", 2) == pytest.approx((1.5 + 2.5) / 2)


def test_samples_that_begin_alike_reach_the_threshold() -> None:
    """A sum that is kept up to date rounds otherwise than one of the whole, by less than the third decimal."""
    tokens = [0.1 + n % 7 / 3 for n in range(500)]
    vote = DeepConf(warmup=1, keep=50, window=9, consensus=1.0).start_vote(2)
    for number in range(2):
        vote.start_samples()
        for confidence in tokens:
            vote.add_token(number, confidence)
        vote.finish(number, str(number))
        vote.decision = ""
    assert not vote.stopped


def run(vote: VoteState, samples: list[tuple[str, float]]) -> VoteState:
    """A vote of samples whose tokens all have one confidence."""
    while begun := vote.start_samples():
        for _ in begun:
            number = len(vote.votes) + len(vote.stopped)
            answer, confidence = samples[number]
            for _ in range(4):
                if number not in vote.stopped:
                    vote.add_token(number, confidence)
            vote.finish(number, None if number in vote.stopped else answer)
    return vote


SAMPLES = [("1", 4.0), ("1", 5.0), ("2", 8.0), ("", 20.0), ("3", 9.0), ("2", 6.0)]


def test_offline_filters_samples_with_answers_and_weighs_them() -> None:
    """The percentiles of 4, 5, 6, 8, 9: half of them reach 6, a tenth reaches 8.6."""
    half = run(DeepConfOffline(keep=50, window=2).start_vote(6), SAMPLES)
    assert half.tally() == pytest.approx({"2": 14.0, "3": 9.0})
    assert run(DeepConfOffline(keep=10, window=2).start_vote(6), SAMPLES).tally() == pytest.approx({"3": 9.0})
    everything = run(DeepConfOffline(keep=100, window=2).start_vote(6), SAMPLES)
    assert everything.tally() == pytest.approx({"2": 14.0, "1": 9.0, "3": 9.0})
    assert not everything.stopped and not everything.decision, "all samples run to their end"


def test_online_stops_below_the_percentile_of_the_warmup() -> None:
    """Four of the warm-up, one without an answer: the tenth percentile of 4, 5, 8 and 20 is 4.3, the 90th 16.4."""
    high = run(DeepConf(warmup=4, keep=90, window=2).start_vote(6), [*SAMPLES[:4], ("3", 4.2), ("2", 6.0)])
    assert getattr(high, "threshold", None) == pytest.approx(4.3)
    assert list(high.stopped) == [4]
    assert high.tally() == pytest.approx({"2": 14.0, "1": 5.0})
    low = run(DeepConf(warmup=4, keep=10, window=2).start_vote(6), [*SAMPLES[:5], ("2", 17.0)])
    assert getattr(low, "threshold", None) == pytest.approx(16.4)
    assert list(low.stopped) == [4]
    assert low.tally() == pytest.approx({"2": 17.0})


def test_online_ends_at_a_consensus_of_95_per_cent() -> None:
    """19 of 20 is one, and a lead of votes that cannot be overtaken is none: weights have no bound."""
    agreed = run(DeepConf(warmup=2, keep=100, window=2).start_vote(6), [("1", 19.0), ("2", 1.0), *SAMPLES])
    assert len(agreed.votes) == 2 and agreed.decision
    torn = run(DeepConf(warmup=4, keep=100, window=2).start_vote(6), [("1", 9.0)] * 3 + [("2", 4.0)] * 3)
    assert len(torn.votes) == 6 and not torn.decision
