"""Samples of prompts on the embedded model: the vote, who is stopped, what it costs, and what is said about it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

import tersely
from tersely.controller.engines.transformers.engine import TransformersEngine, load_engine
from tersely.controller.policies.base import Note, PolicyView, Wait, Watching
from tersely.controller.sampling.deepconf import DeepConf
from tersely.controller.sampling.majority import Majority, ShortMofK
from tersely.controller.sampling.research.resampling import ProblemClass, VerifierRates
from tersely.controller.sampling.research.tree import Tree
from tersely.controller.sampling.research.verified import Verified
from tersely.controller.sampling.result import SampleResult, StopDecision
from tersely.controller.sampling.vote import ROOT, Branch
from tersely.controller.text.answers import extract_answer
from tersely.controller.trace import GenerationResult
from tersely.errors import CapabilityError, OptionError
from tersely.probes.io import save_tier_probe
from tersely.probes.tier_selector import TierProbe, TierTable

from ..support.planted_records import constant

EASY = "Set a to 6 + 4. What is a?"
QUESTIONS = [EASY, "Compute 9 - 4 + 2.", "Compute 48 + 27 - 36."]


@pytest.fixture(scope="module")
def engine() -> TransformersEngine:
    return load_engine("tersely-tiny-small")


def ask(engine: TransformersEngine, prompts: Any = QUESTIONS, **options: Any) -> Any:
    return tersely.sample(engine, prompts=prompts, **{"max_new_tokens": 256, "seed": 3, **options})


def full(engine: TransformersEngine, **options: Any) -> list[SampleResult]:
    done: list[SampleResult] = ask(engine, rule=Majority(early=False), **options)
    return done


def stopped(result: SampleResult) -> list[GenerationResult]:
    return [sample for sample in result.samples if sample.finish_reason == "stopped"]


def check(result: SampleResult) -> None:
    """What holds of any result."""
    assert result.usage.total == sum(sample.usage.total for sample in result.samples)
    *stops, last = result.trace
    told = {stop.sample: (stop.position, stop.reason) for stop in stops}
    assert told == {
        number: (len(sample.token_ids), sample.trace[-1].reason)
        for number, sample in enumerate(result.samples)
        if sample.finish_reason == "stopped"
    }
    assert all(s.trace[-1].position == len(s.token_ids) for s in stopped(result))
    assert (last.sample, last.position) == (None, result.usage.total)
    assert result.answer == next(iter(result.votes), "")


@pytest.mark.parametrize("preset", ["off", "balanced"])
def test_an_early_end_keeps_the_answer_and_saves_tokens(engine: TransformersEngine, preset: str) -> None:
    early, whole = ask(engine, preset=preset), full(engine, preset=preset)
    fired = 0
    for some, every in zip(early, whole, strict=True):
        check(some)
        check(every)
        assert some.answer == every.answer
        assert not stopped(every)
        for cut, kept in zip(some.samples, every.samples, strict=True):
            assert cut.token_ids == kept.token_ids[: len(cut.token_ids)]
        if stopped(some):
            fired += 1
            assert some.usage.total < every.usage.total
            assert "can follow" in some.trace[-1].reason
    assert fired > 0


def test_policies_act_on_each_sample(engine: TransformersEngine) -> None:
    off, on = (full(engine, preset=preset, prompts=QUESTIONS[1:]) for preset in ("off", "balanced"))
    assert sum(r.usage.total for r in on) < sum(r.usage.total for r in off)
    assert not any(sample.trace for r in off for sample in r.samples)
    assert sum(bool(sample.trace) for r in on for sample in r.samples) > 3


def test_samples_are_those_of_one_batch_of_prompts(engine: TransformersEngine) -> None:
    (result,) = full(engine, prompts=[EASY])
    alike = tersely.generate(engine, prompts=[EASY] * 5, max_new_tokens=256, seed=3)
    assert [sample.token_ids for sample in result.samples] == [one.token_ids for one in alike]
    assert result.votes[result.answer] == sum(extract_answer(one.answer) == result.answer for one in alike)
    assert result.usage.prompt == 5 * alike[0].usage.prompt


def test_short_ones_vote_and_the_rest_are_cut_while_they_think(engine: TransformersEngine) -> None:
    for result in ask(engine, rule=ShortMofK(m=2), preset="off"):
        check(result)
        cut = [result.samples[r.sample] for r in result.trace if "finished thinking" in r.reason]
        assert len(cut) == 3
        assert not any(sample.answer for sample in cut)
        assert sum(result.votes.values()) <= 2
        others = [s for s in result.samples if s not in cut]
        assert max(s.usage.thinking for s in others) <= min(s.usage.thinking for s in cut) + 1


def test_a_model_that_does_not_think_may_be_asked_for_short_samples(engine: TransformersEngine) -> None:
    result = ask(engine, EASY, rule="short", effort="none")
    check(result)
    assert result.usage.thinking == 0
    assert [len(sample.token_ids) for sample in stopped(result)] == [1, 1] or len(stopped(result)) > 2


def test_unsure_samples_are_stopped(engine: TransformersEngine) -> None:
    rule = DeepConf(warmup=2, keep=1, window=8, consensus=1.0)
    results = ask(engine, rule=rule, k=6, preset="off", temperature=1.3)
    unsure = [ruling for result in results for ruling in result.trace if "bar" in ruling.reason]
    assert unsure
    for result in results:
        check(result)
        assert len(result.samples) in (2, 6)
        assert all(sample.finish_reason != "stopped" for sample in result.samples[:2])
        assert all(sample.signals for sample in result.samples)
    for ruling in unsure:
        assert ruling.position >= 8


def test_attempts_end_with_the_first_that_passes(engine: TransformersEngine) -> None:
    seen: list[tuple[Any, str]] = []

    def passes(prompt: Any, generation: GenerationResult) -> bool:
        seen.append((prompt, generation.text))
        return prompt == EASY or len(seen) > 5

    rule = Verified(passes, VerifierRates(1.0, 0.25), (ProblemClass(0.58, 0.87), ProblemClass(0.42, 0.13)), penalty=0)
    first, second = ask(engine, QUESTIONS[:2], rule=rule, k=3)
    check(first)
    check(second)
    assert (len(first.samples), first.trace[-1].reason) == (1, "attempt 1 passed")
    assert first.answer == extract_answer(first.samples[0].answer)
    assert (len(second.samples), second.answer, second.votes) == (3, "", {})
    assert "no more are allowed" in second.trace[-1].reason
    assert [prompt for prompt, _ in seen] == [EASY, *[QUESTIONS[1]] * 3]
    assert len({text for prompt, text in seen if prompt != EASY}) == 3, "each attempt has a seed of its own"


@dataclass(frozen=True)
class Looking:
    """Looks at what there is of every token when it is first woken, and notes how many have no signals."""

    name: ClassVar[str] = "looking"
    needs: ClassVar[frozenset[str]] = frozenset({"signals"})

    def watch(self, view: PolicyView) -> Watching:
        view = yield Wait(at=30, boundary="token")
        yield Note(f"{sum(seen is None for seen in view.thinking.signals)} of {view.tokens} unseen")


def test_branches_know_how_sure_the_thoughts_were_that_they_go_on_from(engine: TransformersEngine) -> None:
    results = ask(engine, rule=Tree(roots=1, width=2), k=3, policies=(Looking(),))
    branches = [branch for result in results for branch in result.samples[1:]]
    notes = [decision.reason for branch in branches for decision in branch.trace if decision.policy == "looking"]
    assert notes and all(note.startswith("0 of ") for note in notes)


@pytest.mark.parametrize("preset", ["off", "balanced"])
def test_branches_go_on_from_thoughts_of_others(engine: TransformersEngine, preset: str) -> None:
    results = ask(engine, rule=Tree(roots=1, width=2), k=3, preset=preset)
    branches = [(result.samples[0], branch) for result in results for branch in result.samples[1:]]
    assert len(branches) == 2 * sum(len(result.samples) > 1 for result in results) > 0
    for root, branch in branches:
        kept = branch.usage.reprefilled
        assert branch.token_ids[:kept] == root.token_ids[:kept]
        assert branch.usage.thinking + branch.usage.answer == len(branch.token_ids) - kept
        assert all(decision.position >= kept for decision in branch.trace)
        assert "</think>" in branch.text or branch.finish_reason == "stopped"
    assert sum(branch.usage.reprefilled for _, branch in branches) > 0
    assert any(branch.text != root.text for root, branch in branches)
    for result in results:
        check(result)


def test_a_tree_stays_within_its_tokens(engine: TransformersEngine) -> None:
    result = ask(engine, QUESTIONS[2], rule=Tree(most_tokens=60), preset="off")
    check(result)
    assert result.trace[-1].reason == "60 tokens are sampled"
    assert result.usage.total - result.usage.reprefilled <= 60 + len(result.samples)


@pytest.mark.parametrize("rule", ["majority", "tree"])
def test_tiers_are_chosen_for_samples_too(engine: TransformersEngine, rule: str, tmp_path: Path) -> None:
    table = TierTable(("none", "easy"), np.eye(2), np.ones((2, 2)))
    probe = TierProbe(constant([0.1, 0.9], 128), ("none", "easy"), -1, table, 0.0)
    known = {"name": engine.name, "fingerprint": engine.fingerprint()}
    save_tier_probe(probe, tmp_path / "difficulty", known, {}, {})
    options: dict[str, Any] = {"rule": rule, "k": 3, "preset": "careful"}
    chosen = ask(engine, QUESTIONS[:2], effort="auto", probes=str(tmp_path), **options)
    named = ask(engine, QUESTIONS[:2], effort="easy", **options)
    for one, other in zip(chosen, named, strict=True):
        check(one)
        assert one.samples[0].trace[0].policy == "effort"
        assert [s.token_ids for s in one.samples] == [s.token_ids for s in other.samples]
        assert (one.votes, one.usage, one.trace) == (other.votes, other.usage, other.trace)


def test_one_sample_is_a_generation(engine: TransformersEngine) -> None:
    result = ask(engine, EASY, k=1, temperature=0)
    alone = tersely.generate(engine, prompts=EASY, max_new_tokens=256, temperature=0)
    assert result.samples == (alone,)
    assert result.trace == (StopDecision(None, f"{result.answer} has 1 of 1 votes", alone.usage.total),)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"k": 0}, "k is 0"),
        ({"temperature": 0}, "temperature above 0"),
        ({"rule": "majorety"}, "did you mean 'majority'"),
        ({"rule": "short", "k": 2}, "m is 3 of 2 samples"),
    ],
)
def test_bad_input_is_one_clear_error(engine: TransformersEngine, options: dict[str, Any], says: str) -> None:
    with pytest.raises(OptionError, match=says):
        ask(engine, EASY, **options)


def test_confidence_needs_an_engine_that_reports_it(engine: TransformersEngine) -> None:
    plain = TransformersEngine(engine.model, engine.tokenizer, name="plain")
    plain.capabilities = frozenset({"crop"})
    with pytest.raises(CapabilityError, match="lacks signals"):
        ask(plain, EASY, rule="deepconf")


def test_a_tree_forks_before_the_least_sure_thought() -> None:
    poll = Tree(roots=2, width=2).poll(7)
    assert poll.draw() == [ROOT] * 2
    poll.ended(0, "1", [(10, 0.3), (20, 0.8), (30, 0.6)])
    poll.ended(1, "2", [(12, 0.9), (24, 0.5)])
    assert poll.draw() == [Branch(1, 12)] * 2, "not at the start, where nothing would be kept"
    poll.ended(2, "1", [(24, 0.9)])
    poll.ended(3, "2", [])
    assert poll.draw() == [Branch(0, 20)] * 2, "each fork once"
    poll.ended(4, "1", [])
    poll.ended(5, "2", [])
    assert poll.draw() == [Branch(0, 10)], "as many as there may be"
    poll.ended(6, "2", [])
    assert poll.draw() == []
    assert list(poll.votes()) == ["2", "1"]


def test_a_tree_keeps_to_its_tokens() -> None:
    poll = Tree(most_tokens=5).poll(4)
    poll.draw()
    for _ in range(2):
        poll.read(0, 0.5)
        poll.read(1, 0.5)
    assert not poll.stopped
    poll.read(0, 0.5)
    assert list(poll.stopped) == [0, 1]
    poll.ended(0, None)
    poll.ended(1, None)
    assert poll.draw() == []
    with pytest.raises(OptionError, match="roots are 5 of 4"):
        Tree(roots=5).poll(4)
