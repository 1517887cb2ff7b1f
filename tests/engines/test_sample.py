"""Several samples of each prompt on the embedded model: the vote, stopped samples, usage and trace."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

import tersely
from tersely.controller.engines.transformers.engine import TransformersEngine, load_engine
from tersely.controller.policies.base import Note, Policy, PolicyView, Wait, Watching
from tersely.controller.sampling import SampleResult, StopDecision
from tersely.controller.sampling.deepconf import DeepConf, DeepConfOffline
from tersely.controller.sampling.resampling import ProblemClass, VerifierRates
from tersely.controller.sampling.research.rules import Tree, Verified
from tersely.controller.sampling.rules import Majority, ShortMofK
from tersely.controller.text.answers import extract_answer
from tersely.controller.trace import GenerationResult
from tersely.controller.types import Capability
from tersely.errors import CapabilityError, OptionError
from tersely.evaluation.tasks.questions import load
from tersely.probes.io import save_tier_probe
from tersely.probes.tier_selector import TierProbe, TierTable

from ..support.planted_records import constant
from ..support.refusals import refused

EASY = "Set a to 6 + 4. What is a?"
MOST = 160
QUESTIONS = [EASY, "Compute 9 - 4 + 2.", "Compute 5 + 4 - 6."]


@pytest.fixture(scope="module")
def engine() -> TransformersEngine:
    return load_engine("tersely-tiny-small")


def sample(engine: TransformersEngine, prompts: Any = QUESTIONS, **options: Any) -> Any:
    return tersely.sample(engine, prompts, **{"max_new_tokens": MOST, "seed": 3, **options})


def sample_fully(engine: TransformersEngine, **options: Any) -> list[SampleResult]:
    results: list[SampleResult] = sample(engine, rule=Majority(early=False), **options)
    return results


@pytest.fixture(scope="module")
def whole(engine: TransformersEngine) -> dict[str, list[SampleResult]]:
    """All samples of the questions to their ends, by preset."""
    return {preset: sample_fully(engine, preset=preset) for preset in ("off", "balanced")}


def stopped_samples(result: SampleResult) -> list[GenerationResult]:
    return [sample for sample in result.samples if sample.finish_reason == "stopped"]


def check_consistency(result: SampleResult) -> None:
    """Check what must hold for any result."""
    assert result.usage.total == sum(sample.usage.total for sample in result.samples)
    *stops, last = result.trace
    assert {stop.sample: (stop.position, stop.reason) for stop in stops} == {
        number: (len(sample.token_ids), sample.trace[-1].reason)
        for number, sample in enumerate(result.samples)
        if sample.finish_reason == "stopped"
    }
    assert all(s.trace[-1].position == len(s.token_ids) for s in stopped_samples(result))
    assert (last.sample, last.position) == (None, result.usage.total)
    assert result.answer == next(iter(result.votes), "")


@pytest.mark.parametrize("preset", ["off", "balanced"])
def test_stopping_early_keeps_the_answer_and_saves_tokens(
    engine: TransformersEngine, whole: dict[str, list[SampleResult]], preset: str
) -> None:
    early, fired = sample(engine, preset=preset), 0
    for some, every in zip(early, whole[preset], strict=True):
        check_consistency(some)
        check_consistency(every)
        assert some.answer == every.answer
        assert not stopped_samples(every)
        for cut, kept in zip(some.samples, every.samples, strict=True):
            assert cut.token_ids == kept.token_ids[: len(cut.token_ids)]
        if stopped_samples(some):
            fired += 1
            assert some.usage.total <= every.usage.total
            assert "can follow" in some.trace[-1].reason
    assert fired > 0
    assert sum(some.usage.total for some in early) < sum(every.usage.total for every in whole[preset])


def test_policies_act_on_each_sample(whole: dict[str, list[SampleResult]]) -> None:
    off, on = whole["off"], whole["balanced"]
    assert sum(r.usage.total for r in on) < sum(r.usage.total for r in off)
    assert not any(sample.trace for r in off for sample in r.samples)
    assert sum(bool(sample.trace) for r in on for sample in r.samples) > 3


def test_samples_are_the_same_as_equal_prompts_in_one_batch(engine: TransformersEngine) -> None:
    (result,) = sample_fully(engine, prompts=[EASY])
    alike = tersely.generate(engine, [EASY] * 5, max_new_tokens=MOST, seed=3)
    assert [sample.token_ids for sample in result.samples] == [one.token_ids for one in alike]
    assert result.votes[result.answer] == sum(extract_answer(one.answer) == result.answer for one in alike)
    assert result.usage.prompt == 5 * alike[0].usage.prompt


def test_short_stops_the_other_samples_while_they_think(engine: TransformersEngine) -> None:
    for result in sample(engine, rule=ShortMofK(m=2), preset="off"):
        check_consistency(result)
        cut = [result.samples[r.sample] for r in result.trace if "finished thinking" in r.reason]
        assert len(cut) == 3
        assert not any(sample.answer for sample in cut)
        assert sum(result.votes.values()) <= 2
        others = [s for s in result.samples if s not in cut]
        assert max(s.usage.thinking for s in others) <= min(s.usage.thinking for s in cut) + 1


def test_votes_come_first_and_thinking_where_they_differ(engine: TransformersEngine) -> None:
    results = sample(engine, rule="vote-first", preset="off")
    for result in results:
        check_consistency(result)
        thinking = [one.usage.thinking for one in result.samples]
        assert thinking[:3] == [0, 0, 0] and all(thinking[3:]) and len(thinking) in (3, 5)
        assert (len(thinking) == 3) == (len({extract_answer(one.answer) for one in result.samples[:3]}) == 1)
    assert len({len(result.samples) for result in results}) == 2


def test_short_works_without_thinking(engine: TransformersEngine) -> None:
    result = sample(engine, EASY, rule="short", effort="none")
    check_consistency(result)
    assert result.usage.thinking == 0
    assert [len(sample.token_ids) for sample in stopped_samples(result)] == [1, 1] or len(stopped_samples(result)) > 2


def test_deepconf_stops_unconfident_samples(engine: TransformersEngine) -> None:
    rule = DeepConf(warmup=3, keep=50, window=8, consensus=1.0)
    hard = [question.problem for question in load("tiny", "test", 4, 5)]
    results = sample(engine, hard, rule=rule, k=6, preset="off", temperature=1.3, max_new_tokens=120)
    unsure = [ruling for result in results for ruling in result.trace if "threshold" in ruling.reason]
    assert unsure
    for result in results:
        check_consistency(result)
        assert len(result.samples) in (3, 6)
        assert all(sample.finish_reason != "stopped" for sample in result.samples[:3])
        assert all(one.confidence > one.entropy / 20 for sample in result.samples for one in sample.signals if one)
    for ruling in unsure:
        assert ruling.position >= 8


def test_deepconf_offline_lets_the_most_confident_vote(engine: TransformersEngine) -> None:
    (result,) = sample(
        engine, QUESTIONS[:1], rule=DeepConfOffline(keep=50, window=8), k=4, preset="off", temperature=1.3
    )
    check_consistency(result)
    assert not stopped_samples(result) and len(result.samples) == 4
    tails = [[one.confidence for one in s.signals if one][-8:] for s in result.samples if extract_answer(s.answer)]
    means = sorted(sum(tail) / 8 for tail in tails)
    assert sum(result.votes.values()) == pytest.approx(sum(means[len(means) // 2 :]), rel=0.05), (
        "the end of the turn counts too"
    )


def test_verified_stops_at_the_first_attempt_that_passes(engine: TransformersEngine) -> None:
    seen: list[tuple[Any, str]] = []

    def passes(prompt: Any, generation: GenerationResult) -> bool:
        seen.append((prompt, generation.text))
        return prompt == EASY or len(seen) > 5

    rule = Verified(passes, VerifierRates(1.0, 0.25), (ProblemClass(0.58, 0.87), ProblemClass(0.42, 0.13)), penalty=0)
    first, second = sample(engine, QUESTIONS[:2], rule=rule, k=3)
    check_consistency(first)
    check_consistency(second)
    assert (len(first.samples), first.trace[-1].reason) == (1, "attempt 1 passed")
    assert first.answer == extract_answer(first.samples[0].answer)
    assert (len(second.samples), second.answer, second.votes) == (3, "", {})
    assert "no more are allowed" in second.trace[-1].reason
    assert [prompt for prompt, _ in seen] == [EASY, *[QUESTIONS[1]] * 3]
    assert len({text for prompt, text in seen if prompt != EASY}) == 3, "each attempt has a seed of its own"


@dataclass(frozen=True)
class CountMissingSignals(Policy):
    """Notes how many of the tokens so far have no signals."""

    name: ClassVar[str] = "count-missing"
    requires: ClassVar[frozenset[Capability]] = frozenset({Capability.LOGIT_SIGNALS})

    def watch(self, view: PolicyView) -> Watching:
        yield Wait(at=30, boundary="token")
        yield Note(f"{sum(signals is None for signals in view.thinking.signals)} of {view.tokens} missing")


def test_branches_keep_the_signals_of_their_parents(engine: TransformersEngine) -> None:
    results = sample(engine, rule=Tree(roots=1, width=2), k=3, policies=(CountMissingSignals(),))
    branches = [branch for result in results for branch in result.samples[1:]]
    notes = [decision.reason for branch in branches for decision in branch.trace if decision.policy == "count-missing"]
    assert notes and all(note.startswith("0 of ") for note in notes)


def test_branches_continue_thoughts_of_their_parents(engine: TransformersEngine) -> None:
    results = sample(engine, rule=Tree(roots=1, width=2), k=3, preset="balanced")
    branches = [(result.samples[0], branch) for result in results for branch in result.samples[1:]]
    assert len(branches) == 2 * sum(len(result.samples) > 1 for result in results) > 0
    for root, branch in branches:
        kept = branch.usage.recomputed
        assert branch.token_ids[:kept] == root.token_ids[:kept]
        assert branch.usage.thinking + branch.usage.answer == len(branch.token_ids) - kept
        assert all(decision.position >= kept or decision.action == "note" for decision in branch.trace)
        assert "</think>" in branch.text or branch.finish_reason == "stopped"
    assert sum(branch.usage.recomputed for _, branch in branches) > 0
    assert any(branch.text != root.text for root, branch in branches)
    for result in results:
        check_consistency(result)


def test_tree_stays_within_its_tokens(engine: TransformersEngine) -> None:
    result = sample(engine, QUESTIONS[2], rule=Tree(most_tokens=60), preset="off")
    check_consistency(result)
    assert result.trace[-1].reason == "60 tokens are sampled"
    assert result.usage.total - result.usage.recomputed <= 60 + len(result.samples)


@pytest.mark.parametrize("rule", ["majority", "tree"])
def test_effort_auto_chooses_the_tier_of_samples(engine: TransformersEngine, rule: str, tmp_path: Path) -> None:
    table = TierTable(("none", "easy"), np.eye(2), np.ones((2, 2)))
    probe = TierProbe(constant([0.1, 0.9], 128), ("none", "easy"), -1, table, 0.0)
    known = {"name": engine.name, "fingerprint": engine.fingerprint()}
    save_tier_probe(probe, tmp_path / "difficulty", known, {}, {})
    options: dict[str, Any] = {"rule": rule, "k": 3, "preset": "careful"}
    chosen = sample(engine, QUESTIONS[:2], effort="auto", probes=str(tmp_path), **options)
    named = sample(engine, QUESTIONS[:2], effort="easy", **options)
    for one, other in zip(chosen, named, strict=True):
        check_consistency(one)
        assert one.samples[0].trace[0].policy == "effort"
        assert [s.token_ids for s in one.samples] == [s.token_ids for s in other.samples]
        assert one.votes == other.votes
        read = sum(s.usage.recomputed for s in one.samples) - sum(s.usage.recomputed for s in other.samples)
        assert 0 < read < one.samples[0].usage.prompt, "the prompt is read once for all samples"
        assert one.usage.total - read == other.usage.total


def test_one_sample_equals_generate(engine: TransformersEngine) -> None:
    result = sample(engine, EASY, k=1, temperature=0)
    alone = tersely.generate(engine, EASY, max_new_tokens=MOST, temperature=0)
    assert result.samples == (alone,)
    assert result.trace == (StopDecision(None, f"{result.answer} has 1 of 1 votes", alone.usage.total),)


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"k": 0}, "invalid_sample_count"),
        ({"temperature": 0}, "greedy_samples"),
        ({"rule": "majorety"}, "unknown_name"),
        ({"rule": "short", "k": 2}, "invalid_option"),
    ],
)
def test_bad_options_are_refused(engine: TransformersEngine, options: dict[str, Any], code: str) -> None:
    with pytest.raises(OptionError) as error:
        sample(engine, EASY, **options)
    assert error.value.code == code


def test_deepconf_needs_an_engine_with_signals(engine: TransformersEngine) -> None:
    plain = TransformersEngine(engine.model, engine.tokenizer, name="plain")
    plain.capabilities = frozenset({Capability.KV_ROLLBACK})
    with refused(CapabilityError):
        sample(plain, EASY, rule="deepconf")
