"""Guided decoding by a process reward model on the embedded model, and the training of such a model."""

from __future__ import annotations

from pathlib import Path

import pytest

import tersely
from tersely.cli.app import main
from tersely.controller.engines.transformers.engine import TransformersEngine, load_engine
from tersely.controller.probe_registry import ProbeError
from tersely.controller.sampling import resolve_rule
from tersely.controller.sampling.research.guided import Guided, load_reward_model
from tersely.probes.artifact import Artifact, ArtifactError, save

from ..support.planted_records import constant
from ..support.refusals import refused

QUESTIONS = ["Set a to 6 + 4. What is a?", "Compute 5 + 4 - 6."]


@pytest.fixture(scope="module")
def engine() -> TransformersEngine:
    return load_engine("tersely-tiny-small")


def save_constant(engine: TransformersEngine, folder: Path, features: tuple[str, ...] = ()) -> str:
    """A reward model for which all thoughts are worth 0.9."""
    base = {"name": engine.name, "fingerprint": engine.fingerprint()}
    network = constant([0.9, 0.1], 128)
    save(Artifact("readiness", network, ("hopeful", "hopeless"), -1, features, base), folder / "readiness")
    return str(folder)


def test_candidates_of_a_step_continue_the_one_that_was_chosen(engine: TransformersEngine, tmp_path: Path) -> None:
    rule = Guided(probes=save_constant(engine, tmp_path))
    results = tersely.sample(engine, QUESTIONS, k=2, rule=rule, preset="off", max_new_tokens=400, seed=3)
    for result in results:
        first, others = result.samples[:2], result.samples[2:]
        assert all(sample.finish_reason == "stopped" for sample in first)
        assert all(one.usage.thinking > 5 for one in result.samples if one.finish_reason == "stopped"), "whole thoughts"
        assert [reason.reason for reason in result.trace[:2]] == ["its step 1 has a value of 0.900"] * 2
        assert others, "a problem has more than one thought"
        for start in range(0, len(others), 2):
            before = result.samples[start]  # all values are equal, so the first candidate of the step before
            for sample in others[start : start + 2]:
                kept = sample.usage.recomputed
                assert kept > 0 and sample.token_ids[:kept] == before.token_ids[:kept]
        assert list(result.votes.values()) == [1.0], "only the chosen candidate counts"
        assert result.usage.recomputed > 0 and result.usage.total == sum(one.usage.total for one in result.samples)


def test_rules_without_a_reward_model_of_the_model_are_refused(engine: TransformersEngine, tmp_path: Path) -> None:
    assert resolve_rule("guided") == Guided()
    with pytest.raises(ProbeError):
        tersely.sample(engine, QUESTIONS[0], rule="guided")
    with pytest.raises(ArtifactError):
        load_reward_model(save_constant(engine, tmp_path, ("entropy",)), engine)


@pytest.mark.slow
def test_a_reward_model_is_trained(engine: TransformersEngine, tmp_path: Path) -> None:
    out = tmp_path / "prm"
    command = ["train", "prm", engine.name, str(out), "--limit", "20", "--places", "1", "--width", "1"]
    assert main([*command, "--batch-size", "60", "--max-new-tokens", "240"]) == 0
    probe = load_reward_model(out, engine).probe
    assert set(probe.classes) == {"ready", "hopeful", "hopeless"}
    assert 0 < probe.metrics["share"] < 1 and len(probe.learned_from) < 20, "some questions are held out"
    with refused(ArtifactError, "wrong_model"):
        load_reward_model(out, load_engine("tersely-tiny-agent"))
