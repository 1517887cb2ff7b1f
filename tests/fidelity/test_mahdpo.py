"""MAH-DPO with guided decoding (arXiv 2510.01167): what the authors' code computes, worked out by hand."""

from __future__ import annotations

import inspect
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import tersely
from tersely.controller.engines.transformers.engine import TransformersEngine
from tersely.controller.sampling.research.guided import MOST_STEPS, Guided, RewardModel
from tersely.controller.sampling.rules import ROOT, Branch, VoteState
from tersely.errors import OptionError
from tersely.evaluation.research.prm import Completions
from tersely.probes.artifact import Artifact
from tersely.probes.network import Network
from tersely.training.offline import PreferencePair, SampledTrace
from tersely.training.research.mahdpo import (
    OBJECTIVE,
    Heads,
    MahDpo,
    build_headed_trainer,
    install_heads,
    mix_heads,
)
from tersely.training.sampling import RolloutSampler

from ..support.refusals import refused
from ..support.trainings import make_recipe, make_run

NAMES = ("accuracy", "brevity")


def test_constants() -> None:
    settings = MahDpo()
    assert (settings.beta, settings.noise, settings.frozen, settings.nll_weight) == (0.1, 1e-3, False, 0.0)
    assert (inspect.signature(tersely.sample).parameters["k"].default, MOST_STEPS) == (5, 20)
    assert (Guided().thoughts, Guided().weights) == (1, {"accuracy": 1.0})


def test_heads_start_as_the_models_own_with_noise_of_a_thousandth() -> None:
    own = torch.randn(400, 64)
    heads = list(Heads(own, NAMES, noise=1e-3, seed=3).heads)
    added = [(head - own).detach() for head in heads]
    assert [noise.std().item() for noise in added] == pytest.approx([1e-3, 1e-3], rel=0.02)
    assert abs(torch.corrcoef(torch.stack([noise.flatten() for noise in added]))[0, 1]) < 0.05
    assert torch.equal(heads[0], Heads(own, NAMES, noise=1e-3, seed=3).heads[0])
    assert torch.equal(Heads(own, NAMES).heads[1], own)


def test_the_ensemble_is_the_weighted_mean_of_logits() -> None:
    heads = {"accuracy": torch.tensor([[1.0, 0.0]]), "brevity": torch.tensor([[0.0, 1.0]])}
    state = torch.tensor([2.0, 6.0])  # so the heads' logits are 2 and 6
    assert (mix_heads(heads, {"accuracy": 3.0, "brevity": 1.0}) @ state).item() == pytest.approx(0.75 * 2 + 0.25 * 6)


def make_example(engine: TransformersEngine, chosen: str, rejected: str, objective: int) -> dict[str, Any]:
    prompt = engine.tokenizer.encode("How many shells?<think>\n")
    pair = [
        SampledTrace(prompt, ids, [1] * len(ids), True, True)
        for ids in map(engine.tokenizer.encode, (chosen, rejected))
    ]
    return {**PreferencePair(NAMES[objective], *pair).to_example(), OBJECTIVE: objective}


def log_probability(hidden: Any, weight: Tensor, prompt: list[int], ids: list[int]) -> Tensor:
    """Of a completion, from the states of the trunk and the weights of one head."""
    states = hidden(torch.tensor([[*prompt, *ids]])).last_hidden_state[0]
    logits = F.linear(states, weight)[len(prompt) - 1 : -1]
    return logits.log_softmax(-1)[range(len(ids)), ids].sum()


def test_the_loss_is_the_mean_over_objectives_of_their_mean_dpo_losses(
    small: TransformersEngine, tmp_path: Path
) -> None:
    model = deepcopy(small.model)
    own = model.get_output_embeddings().weight.detach().clone()
    heads = install_heads(model, NAMES, noise=0.05)
    recipe = make_recipe("mahdpo", tmp_path, optimizer={"micro_batch": 3, "steps": 1})
    run = make_run(recipe, RolloutSampler(small, recipe.rollouts))
    examples = [
        make_example(small, "9 + 3 = 12. So 12", "9 + 3 = 13. So 13", 0),
        make_example(small, "Kai has 5.", "Kai has 7. So 7", 0),
        make_example(small, "12", "9 + 3 = 12. So I get 12.", 1),
    ]
    pairs = [
        [PreferencePair("", SampledTrace([1], [2], [1], True, True), SampledTrace([1], [3], [1], False, True))]
    ] * 2
    trainer = build_headed_trainer(run, model, small.tokenizer, pairs, heads)
    assert trainer.train_dataset[OBJECTIVE] == [0, 1], "pairs of all objectives in turn"
    found = trainer.compute_loss(trainer.model, trainer.data_collator(deepcopy(examples)))
    losses: list[list[Tensor]] = [[], []]
    for one in examples:
        ratios = []
        for side in ("chosen_ids", "rejected_ids"):
            policy = log_probability(model.model, heads.heads[one[OBJECTIVE]], one["prompt_ids"], one[side])
            reference = log_probability(small.model.model, own, one["prompt_ids"], one[side])
            ratios.append(policy - reference)
        losses[one[OBJECTIVE]].append(-F.logsigmoid(0.1 * (ratios[0] - ratios[1])))
    by_hand = torch.stack([torch.stack(of).mean() for of in losses]).mean()
    assert found.item() == pytest.approx(by_hand.item(), abs=1e-5)
    assert by_hand.item() != pytest.approx(torch.stack([*losses[0], *losses[1]]).mean().item(), abs=1e-3)
    found.backward()
    assert all(head.grad is not None and head.grad.abs().max() > 0 for head in heads.heads)
    assert model.model.layers[0].mlp.up_proj.weight.grad.abs().max() > 0, "the trunk learns as well"


def make_reward_model() -> RewardModel:
    """Its logits for ready, hopeful and hopeless are the state, so equal entries have equal chances."""
    eye = np.eye(3, dtype=np.float32)
    arrays = {"mean": np.zeros(3), "gain": np.ones(3), "w1": np.hstack([eye, -eye]), "b1": np.zeros(6)}
    network = Network(**arrays, w2=np.vstack([eye, -eye]), b2=np.zeros(3), temperature=1.0, bias=np.zeros(3))  # type: ignore[arg-type]
    base = {"name": "by hand", "fingerprint": "0"}
    return RewardModel(Artifact("readiness", network, ("ready", "hopeful", "hopeless"), -1, (), base))


def make_state(ready: float, hopeful: float, hopeless: float) -> Any:
    return lambda layer: np.log(np.array([ready, hopeful, hopeless], np.float32) + np.float32(1e-6))


def test_values_are_weighted_sums_of_chances() -> None:
    model, state = make_reward_model(), make_state(0.2, 0.5, 0.3)(-1)
    assert model.value(state, {"accuracy": 1.0}) == pytest.approx(0.7)
    assert model.value(state, {"accuracy": 1.0, "brevity": 2.0}) == pytest.approx(0.7 + 2 * 0.2)
    with refused(OptionError, "unknown_name"):
        Guided(weights={"engagement": 1.0})


def start(k: int = 2, **settings: Any) -> VoteState:
    vote = Guided(reward=make_reward_model(), **settings).start_vote(k)
    assert vote.start_samples() == [ROOT] * k
    return vote


def test_the_best_candidate_of_each_step_goes_on() -> None:
    vote = start(3)
    for sample, right in enumerate((0.4, 0.8, 0.8)):
        vote.end_thought(sample, 10 + sample, make_state(right / 2, right / 2, 1 - right))
        assert sample in vote.stopped, "its step has ended"
        vote.finish(sample, None)
    assert vote.start_samples() == [Branch(1, 11)] * 3, "of equal ones the first"
    vote.close_thinking(3)
    vote.end_thought(3, 15, make_state(0.3, 0.3, 0.4))
    assert 3 not in vote.stopped, "it goes on to its answer"
    vote.finish(3, "12")
    for sample, right in ((4, 0.5), (5, 0.7)):
        vote.end_thought(sample, 20 + sample, make_state(0.0, right, 1 - right))
        vote.finish(sample, None)
    assert vote.tally() == {}, "another candidate is worth more"
    assert vote.start_samples() == [Branch(5, 25)] * 3
    for sample, answer in ((6, "13"), (7, "14"), (8, "15")):
        vote.close_thinking(sample)
        vote.end_thought(sample, 30, make_state(0.0, 0.9 if sample == 7 else 0.1, 0.1))
        vote.finish(sample, answer)
    assert (vote.start_samples(), vote.tally()) == ([], {"14": 1.0})


def test_weights_decide_which_candidate_goes_on() -> None:
    for weights, best in (({"accuracy": 1.0}, 0), ({"accuracy": 1.0, "brevity": 1.0}, 1)):
        vote = start(weights=weights)
        vote.end_thought(0, 10, make_state(0.1, 0.7, 0.2))
        vote.end_thought(1, 11, make_state(0.5, 0.2, 0.3))
        for sample in range(2):
            vote.finish(sample, None)
        assert vote.start_samples() == [Branch(best, 10 + best)] * 2


def test_steps_may_have_several_thoughts_and_there_are_only_so_many() -> None:
    vote = start(2, thoughts=2, most_steps=1)
    for sample in range(2):
        vote.end_thought(sample, 5, make_state(0.5, 0.0, 0.5))
    assert not vote.stopped
    for sample, right in ((0, 0.3), (1, 0.2)):
        vote.end_thought(sample, 9, make_state(right, 0.0, 1 - right))
        vote.finish(sample, None)
    assert vote.start_samples() == [Branch(0, 9)], "it thinks on alone"
    vote.end_thought(2, 12, make_state(0.5, 0.0, 0.5))
    assert 2 not in vote.stopped
    vote.finish(2, "7")
    assert (vote.start_samples(), vote.tally()) == ([], {"7": 1.0})


def test_a_steps_labels_are_the_outcomes_of_its_completions() -> None:
    state = np.zeros(2, np.float32)
    examples = Completions([state] * 4, [0] * 4, [True, True, False, True], [10, 90, 5, 20]).make_examples(20.0)
    assert examples.labels.tolist() == ["ready", "hopeful", "hopeless", "ready"]
