"""Stopping and thinking on by a learnt rule, on the embedded model with rules made by hand."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from transformers.utils import logging

import tersely
from tersely.controller import probe_registry as probing
from tersely.controller.engines.transformers.engine import TransformersEngine, load_engine
from tersely.controller.options import GenerationOptions
from tersely.controller.policies import make_policy
from tersely.controller.policies.readiness import Readiness
from tersely.controller.policies.speculative import Reconsider
from tersely.controller.probe_registry import ProbeError
from tersely.controller.session import Session
from tersely.controller.trace import GenerationResult
from tersely.controller.types import BindContext, Capability
from tersely.errors import CapabilityError
from tersely.evaluation.bench.arms import CheckError, check_unseen
from tersely.evaluation.bench.cli import bench
from tersely.evaluation.tasks.questions import Question, hash_question
from tersely.probes.artifact import ArtifactError
from tersely.probes.network import Network
from tersely.probes.rule import FEATURES, HOPEFUL, READY, TRIAL_FEATURES, Evidence, StopRule

from ...support.planted_records import linear
from ...support.planted_rules import FREE, PAID, store, stored_rule, sure
from ...support.refusals import refused

PROBLEM = "What is 7 * 6?"
OTHER = "Mia has 4 shells. Mia finds 3 more shells. How many shells does Mia have now?"
MOST = 400


@pytest.fixture(scope="module")
def engine() -> TransformersEngine:
    logging.disable_progress_bar()
    return load_engine("tersely-tiny-small")


def ask(engine: Any, *policies: Any, prompts: Any = PROBLEM, **options: Any) -> Any:
    return tersely.generate(
        engine, prompts=prompts, **{"policies": policies, "temperature": 0, "max_new_tokens": MOST, **options}
    )


@pytest.fixture(scope="module")
def plain(engine: TransformersEngine) -> GenerationResult:
    done: GenerationResult = ask(engine)
    assert done.finish_reason == "stop" and len(thoughts(engine, done)) > 1
    return done


def thoughts(engine: TransformersEngine, done: GenerationResult) -> list[int]:
    """Where thoughts end, in tokens."""
    texts = [engine.tokenizer.decode([token]) for token in done.token_ids[: done.usage.thinking - 1]]
    return [place for place, text in enumerate(texts, 1) if text.endswith("\n\n")]


def growing(bar: float) -> Evidence:
    """Evidence that is unsure (0.5) until so many thoughts have ended, and sure from then on."""
    weights = np.zeros((FREE, 2))
    weights[FEATURES.index("thoughts")] = [-10.0, 10.0]
    network = linear(weights, [0.0, 0.0])
    shifted = Network(**{**network.arrays(), "mean": np.eye(1, FREE, dtype=np.float32)[0] * np.float32(bar)})
    return Evidence(shifted, (HOPEFUL, READY))


# -- the exit ------------------------------------------------------------------------------------------------------


def test_it_closes_at_the_first_thought_when_the_threshold_allows(
    engine: TransformersEngine, plain: GenerationResult
) -> None:
    done = ask(engine, Readiness(threshold=0.7, rule=stored_rule(StopRule(sure(0.75)), -1)))
    first = thoughts(engine, plain)[0]
    (decision,) = done.trace
    assert (decision.policy, decision.action, decision.position) == ("readiness", "close", first)
    assert decision.reason.startswith("ready: ") and "0.7500" in decision.reason
    assert done.token_ids[:first] == plain.token_ids[:first]
    assert done.text[len(engine.tokenizer.decode(done.token_ids[:first])) :].startswith("</think>")
    assert done.answer
    assert (done.usage.trial, done.usage.discarded) == (0, 0)
    assert done.usage.total < plain.usage.total


@pytest.mark.parametrize("threshold", [None, 0.76, 1.0])
def test_it_never_closes_below_the_threshold(
    engine: TransformersEngine, plain: GenerationResult, threshold: float | None
) -> None:
    done = ask(
        engine,
        Readiness(threshold=threshold, rule=stored_rule(StopRule(sure(0.75), sure(0.1, inputs=PAID), 0.0, 0.7), -1)),
    )
    assert (done.token_ids, done.usage, done.trace) == (plain.token_ids, plain.usage, ())


def test_it_reads_features_and_the_state(engine: TransformersEngine, plain: GenerationResult) -> None:
    ends = thoughts(engine, plain)
    later = ask(engine, Readiness(threshold=0.9, rule=stored_rule(StopRule(growing(1.5)), -1)))
    assert later.trace[0].position == ends[1]
    assert (
        ask(engine, Readiness(threshold=0.9, rule=stored_rule(StopRule(growing(0.5)), -1))).trace[0].position == ends[0]
    )


@pytest.mark.parametrize("layer", [1, -1])
def test_the_state_is_that_of_its_layer(engine: TransformersEngine, layer: int) -> None:
    """A rule that looks at one number of the state is as sure as that number is large."""
    from tersely.controller.policies.record import PassiveRecorder, ThoughtRecord

    seen = list[ThoughtRecord]()
    ask(engine, PassiveRecorder(lambda: seen.append, (layer,), trials=False))
    place = int(np.abs(seen[0].states[layer]).argmax())
    value = float(seen[0].states[layer][place])
    weights = np.zeros((FREE, 2))
    weights[len(FEATURES) + place] = [0, 1 / value]
    rule = StopRule(Evidence(linear(weights, [0.0, 0.0]), (HOPEFUL, READY)))
    # Inputs are clipped at 8 deviations.
    expected = 1 / (1 + np.exp(-min(abs(value), 8) / abs(value)))
    (decision,) = ask(engine, Readiness(threshold=expected - 0.01, rule=stored_rule(rule, layer))).trace
    assert decision.reason.startswith("ready: ") and f"{expected:.4f}" in decision.reason


@pytest.mark.slow
def test_trials_are_asked_in_the_band_and_counted(engine: TransformersEngine, plain: GenerationResult) -> None:
    def run(low: float, high: float, overhead: float = 9.0, **more: Any) -> GenerationResult:
        rule = StopRule(sure(0.75), sure(0.2, inputs=PAID), low, high, overhead)
        done: GenerationResult = ask(engine, Readiness(threshold=0.9, rule=stored_rule(rule, -1)), **more)
        return done

    for low, high in ((0.8, 0.9), (0.5, 0.75)):
        assert run(low, high).usage.trial == 0
    asked = run(0.75, 0.8)
    assert asked.token_ids == plain.token_ids, "trials leave no trace"
    assert asked.trace == ()
    lead = len(engine.tokenizer("</think>\n\nThe answer is \\boxed{", add_special_tokens=False)["input_ids"])
    assert asked.usage.trial >= len(thoughts(engine, plain)) * (lead + 1)
    assert asked.usage.total == plain.usage.total + asked.usage.trial
    once = run(0.75, 0.8, overhead=0.0)
    assert 0 < once.usage.trial < asked.usage.trial
    assert run(0.75, 0.8, shadow=True).usage.trial == 0


def test_a_trial_decides_where_free_evidence_does_not(engine: TransformersEngine, plain: GenerationResult) -> None:
    """Paid evidence that reads the confidence alone closes at the first trial that is sure."""
    weights = np.zeros((PAID, 2))
    weights[FREE + TRIAL_FEATURES.index("logit of the trial's confidence")] = [0, 1]
    paid = Evidence(linear(weights, [0.0, 0.0]), (HOPEFUL, READY))
    done = ask(engine, Readiness(threshold=0.61, rule=stored_rule(StopRule(sure(0.6), paid, 0.5, 0.7, 9.0), -1)))
    (decision,) = done.trace
    assert decision.position in thoughts(engine, plain)
    ready, _, trial = decision.reason.partition(", after a trial answer of ")
    score, confidence = (float(re.findall(r"\d\.\d+", part)[-1]) for part in (ready, trial))
    assert confidence == pytest.approx(score, abs=2e-3), "its logit is the trial's"
    assert score >= 0.61
    assert re.findall("'(.*)'", trial)[0] in done.answer
    assert done.usage.trial > 0


def test_what_is_hopeless_is_given_up_by_the_same_threshold(
    engine: TransformersEngine, plain: GenerationResult
) -> None:
    """Where all is lost thinking on repairs nothing either, and the reason says which of the two it is."""
    rule = StopRule(sure(0.9, hopeless=0.6))
    (decision,) = ask(engine, Readiness(threshold=0.89, rule=stored_rule(rule, -1))).trace
    assert decision.reason.startswith("hopeless: ") and "0.9000" in decision.reason and "0.60" in decision.reason
    assert decision.position == thoughts(engine, plain)[0]
    (decision,) = ask(engine, Readiness(threshold=0.89, rule=stored_rule(StopRule(sure(0.9, hopeless=0.4)), -1))).trace
    assert decision.reason.startswith("ready: ")
    assert ask(engine, Readiness(threshold=0.91, rule=stored_rule(rule, -1))).trace == ()


def test_shadow_records_the_exit_and_changes_nothing(engine: TransformersEngine, plain: GenerationResult) -> None:
    done = ask(engine, Readiness(threshold=0.7, rule=stored_rule(StopRule(sure(0.75)), -1)), shadow=True)
    assert (done.token_ids, done.usage) == (plain.token_ids, plain.usage)
    (decision,) = done.trace
    assert (decision.policy, decision.action, decision.acted) == ("readiness", "close", False)
    assert decision.position == thoughts(engine, plain)[0]


def test_rows_of_a_batch_stop_each_at_its_own_time(engine: TransformersEngine) -> None:
    prompts = [PROBLEM, OTHER]
    policy = Readiness(threshold=0.9, rule=stored_rule(StopRule(growing(1.5)), -1))
    together = ask(engine, policy, prompts=prompts)
    assert [g.text for g in together] == [ask(engine, policy, prompts=p).text for p in prompts]
    assert all(g.trace and g.answer for g in together)


# -- found by the model --------------------------------------------------------------------------------------------


def test_the_preset_takes_the_certified_threshold(
    engine: TransformersEngine, plain: GenerationResult, tmp_path: Path
) -> None:
    done = ask(engine, policies=None, preset="certified", probes=store(tmp_path, engine))
    (decision,) = done.trace
    assert (decision.policy, decision.position) == ("readiness", thoughts(engine, plain)[0])
    assert done.usage.trial == 0


def test_trials_are_used_where_they_saved_more_or_are_wanted(engine: TransformersEngine, tmp_path: Path) -> None:
    cheap, dear = store(tmp_path / "a", engine), store(tmp_path / "b", engine, saves=(0.4, 0.5))
    for probes, trials, asked in (
        (cheap, None, False),
        (dear, None, True),
        (cheap, True, True),
        (dear, False, False),
    ):
        done = ask(engine, Readiness(probes=probes, trials=trials))
        assert (done.usage.trial > 0) == asked, (probes, trials)
        assert ("after a trial answer of" in done.trace[0].reason) == asked
    blunt = copy.copy(engine)
    blunt.capabilities = engine.capabilities - {Capability.TRIALS}
    assert ask(blunt, Readiness(probes=dear, trials=True)).usage.trial == 0, "an engine that cannot take trials back"


def test_what_could_not_be_certified_never_stops(
    engine: TransformersEngine, plain: GenerationResult, tmp_path: Path
) -> None:
    probes = store(tmp_path, engine, n=20)
    assert ask(engine, Readiness(probes=probes)).token_ids == plain.token_ids
    forced = ask(engine, Readiness(probes=probes, threshold=0.7))
    assert forced.trace[0].position == thoughts(engine, plain)[0]
    assert ask(engine, Readiness(probes=probes, threshold=0.8)).trace == ()


def test_a_policys_own_folder_comes_first(engine: TransformersEngine, tmp_path: Path) -> None:
    stops, goes_on = store(tmp_path / "a", engine), store(tmp_path / "b", engine, free=0.6)
    assert ask(engine, Readiness(probes=stops), probes=goes_on).trace
    assert not ask(engine, Readiness(probes=goes_on), probes=stops).trace
    assert not ask(engine, "readiness", probes=goes_on).trace


@pytest.mark.parametrize("name", ["readiness", "reconsider"])
def test_without_a_probe_it_says_what_to_do(
    engine: TransformersEngine, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probing, "find_pretrained", lambda fingerprint, kind: None)
    with refused(ProbeError):
        ask(engine, name)
    with refused(ProbeError):
        ask(engine, name, probes=tmp_path)
    with pytest.raises(ArtifactError):
        ask(engine, name, probes=store(tmp_path, engine, fingerprint="ab" * 32))
    with pytest.raises(TypeError):
        make_policy(name).watch(None)  # type: ignore[arg-type]


def test_the_preset_says_so_too(engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probing, "find_pretrained", lambda fingerprint, kind: None)
    with pytest.raises(ProbeError):
        ask(engine, policies=None, preset="certified")


@pytest.mark.parametrize(
    "options",
    [
        {"preset": "certified"},
        {"policies": ["reconsider"]},
        {"preset": "deer"},
    ],
)
def test_custom_generate_refuses_what_it_cannot_pass_on(engine: TransformersEngine, options: dict[str, Any]) -> None:
    with refused(CapabilityError):
        tersely.custom_generate(engine.tokenizer, **options)


def test_engines_without_hidden_states_are_refused(engine: TransformersEngine, tmp_path: Path) -> None:
    blind = copy.copy(engine)
    blind.capabilities = engine.capabilities - {Capability.HIDDEN_STATES}
    with pytest.raises(CapabilityError):
        ask(blind, "readiness", probes=store(tmp_path, engine))


# -- nothing learnt from what is tested on -------------------------------------------------------------------------


def test_a_policy_is_not_tested_on_what_it_learnt_from(engine: TransformersEngine, tmp_path: Path) -> None:
    questions = [Question("q1", PROBLEM, "42"), Question("q2", OTHER, "7")]
    probes = store(tmp_path, engine, learned_from=[hash_question(questions[1])])
    context = BindContext(engine, probes)
    policies = [policy.bind(context) for policy in (Readiness(), Reconsider(), make_policy("budget"))]
    for policy in policies[:2]:
        with refused(CheckError, "train_test_overlap"):
            check_unseen([policies[2], policy], questions)
        check_unseen([policy], questions[:1])


def test_a_benchmark_refuses_probes_that_know_its_questions(engine: TransformersEngine, tmp_path: Path) -> None:
    task = tmp_path / "task.jsonl"
    rows = [{"id": f"q{i}", "problem": p, "answer": "42"} for i, p in enumerate((PROBLEM, OTHER))]
    task.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    options: dict[str, Any] = {"tasks": str(task), "arms": "full,certified", "max_new_tokens": 100, "baselines": False}
    seen = store(tmp_path / "seen", engine, learned_from=[hash_question(Question("", PROBLEM, ""))])
    with refused(CheckError, "train_test_overlap"):
        bench(**options, probes=seen)
    unseen = store(tmp_path / "unseen", engine, learned_from=["ab" * 8])
    with pytest.raises(typer.Exit):
        bench(**options, probes=unseen, out=tmp_path / "r.json")
    arms = {arm["name"]: arm for arm in json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))["arms"]}
    assert arms["certified"]["tokens"]["total"] < arms["full"]["tokens"]["total"]


# -- thinking on ---------------------------------------------------------------------------------------------------


def think_on(score: float, **settings: Any) -> Reconsider:
    return Reconsider(rule=stored_rule(StopRule(sure(score))), **settings)


@pytest.mark.parametrize("limit", [0, 1, 2])
def test_a_close_is_taken_back_as_often_as_allowed(
    engine: TransformersEngine, plain: GenerationResult, limit: int
) -> None:
    done = ask(engine, think_on(0.5, limit=limit), max_new_tokens=1500)
    assert len(done.trace) == limit
    assert done.usage.discarded == limit
    assert done.text.count("</think>") == 1
    assert done.answer and done.finish_reason == "stop"
    assert done.thinking.count("Wait, ") >= limit
    for decision in done.trace:
        assert (decision.policy, decision.action, decision.acted) == ("reconsider", "inject", True)
        assert "0.5000" in decision.reason
    if limit:
        close = plain.usage.thinking - 1
        assert done.trace[0].position == close
        assert done.token_ids[:close] == plain.token_ids[:close]
        assert done.usage.thinking > plain.usage.thinking
    else:
        assert done.token_ids == plain.token_ids


def test_a_close_that_is_sure_enough_stands(engine: TransformersEngine, plain: GenerationResult) -> None:
    done = ask(engine, think_on(0.75))
    assert (done.token_ids, done.usage, done.trace) == (plain.token_ids, plain.usage, ())


def test_thinking_that_has_used_up_half_its_budget_may_end(engine: TransformersEngine, plain: GenerationResult) -> None:
    half = 2 * (plain.usage.thinking - 1)
    for thinking, taken in ((half, 0), (half + 2, 1)):
        done = ask(engine, think_on(0.5, limit=1), max_new_tokens=thinking + 64)
        assert len(done.trace) == taken, thinking


def test_thinking_on_in_shadow_changes_nothing(engine: TransformersEngine, plain: GenerationResult) -> None:
    done = ask(engine, think_on(0.5), shadow=True, max_new_tokens=1500)
    assert (done.token_ids, done.usage) == (plain.token_ids, plain.usage)
    (decision,) = done.trace
    assert (decision.policy, decision.acted) == ("reconsider", False)


@pytest.mark.slow
def test_reconsider_by_name_takes_the_models_probe(
    engine: TransformersEngine, plain: GenerationResult, tmp_path: Path
) -> None:
    """It needs no certificate: thinking on harms nothing but the budget."""
    doubtful = store(tmp_path / "a", engine, free=0.5, n=20)
    done = ask(engine, Reconsider(limit=1), probes=doubtful, max_new_tokens=1500)
    assert [d.policy for d in done.trace] == ["reconsider"]
    assert ask(engine, "reconsider", probes=store(tmp_path / "b", engine, free=0.61)).token_ids == plain.token_ids
    assert not ask(engine, Reconsider(threshold=0.4), probes=doubtful, max_new_tokens=1500).trace


def test_an_exit_and_a_second_look_get_along(engine: TransformersEngine, plain: GenerationResult) -> None:
    """The exit stops at the second thought, however the first look was meant to be followed by another."""
    both: Sequence[Any] = (Readiness(threshold=0.9, rule=stored_rule(StopRule(growing(1.5)), -1)), think_on(0.5))
    done = ask(engine, *both)
    assert [d.policy for d in done.trace] == ["readiness"]
    assert done.trace[0].position == thoughts(engine, plain)[1]


# -- drift ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_traffic_outside_the_calibrated_region_is_noted_in_every_trace(
    engine: TransformersEngine, tmp_path: Path
) -> None:
    """All hidden states lie far outside a region of width 1e-6; the alarm takes some questions, over several calls."""
    probes = store(tmp_path, engine, spread=1e-6)
    session, options = Session(engine), GenerationOptions(preset="certified", probes=probes, max_new_tokens=MOST)
    traces = [session.run([PROBLEM, OTHER], options)[0].trace for _ in range(6)]
    drifts = [[d for d in trace if d.action == "drift"] for trace in traces]
    assert drifts[0] == [], "two questions prove nothing"
    (last,) = drifts[-1]
    assert (last.policy, last.position, last.acted) == ("readiness", 0, False)
    assert "unlike those that the threshold was certified on" in last.reason
    within = Session(engine)
    options = replace(options, probes=store(tmp_path / "wide", engine))
    assert all(d.action != "drift" for _ in range(6) for d in within.run([PROBLEM, OTHER], options)[0].trace)
