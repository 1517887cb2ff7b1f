"""The GRPO trainer: the gradient of forced starts, loss masks, weights of completions, advantages of tokens."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from tersely.training.rewards import NO_THINK, THINK
from tersely.training.rollouts import GroupRollouts, load_rows
from tersely.training.sampling import FREE, CompletionRequest

from ..support.trainings import build_trainer, make_recipe

if TYPE_CHECKING:
    from tersely.training.trainer import AdaptiveTrainer

REWARD_THINK, REWARD_NO_THINK = 0.3, 0.9
HEAT = 4.0
"""A temperature at which the model often answers at once; at 1 that is too rare for an exact gradient."""
STARTS = 48
"""How many first tokens of thinking are checked."""


def first_token_batch(trainer: AdaptiveTrainer, prompt: tuple[int, ...], drawn: dict[int, float]) -> dict[str, Any]:
    """One-token completions, each weighted with its probability: an expectation instead of samples.

    drawn: the log-probability with which each token is drawn.
    """
    tokens = torch.tensor(list(drawn))[:, None]
    log_drawn = torch.tensor(list(drawn.values()))[:, None]
    close = trainer.processing_class.convert_tokens_to_ids("</think>")
    reward = torch.where(tokens[:, 0] == close, REWARD_NO_THINK, REWARD_THINK)
    ones = torch.ones_like(tokens)
    return {
        "prompt_ids": torch.tensor([prompt] * len(tokens)),
        "prompt_mask": torch.ones(len(tokens), len(prompt), dtype=torch.long),
        "completion_ids": tokens,
        "completion_mask": ones,
        "advantages": len(tokens) * log_drawn[:, 0].exp() * reward,
        "num_items_in_batch": torch.tensor(len(tokens)),
        "sampling_per_token_logps": log_drawn,
    }


def gradient(trainer: AdaptiveTrainer, loss: torch.Tensor) -> torch.Tensor:
    weights = [w for w in trainer.model.parameters() if w.requires_grad]
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, weights)])


def trained_and_true_gradient(
    folder: Path, monkeypatch: pytest.MonkeyPatch, *, weighted: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradient from forced completions, and that of the policy's expected reward."""
    made = make_recipe("adaptthink", folder, rollouts={"temperature": HEAT})
    rows = load_rows(made.data)
    trainer, sampler = build_trainer(made, rows, [NO_THINK, THINK] * 2, importance_sampling_level="token", epsilon=1e9)
    prompt = sampler.prompt_ids(rows[0]["prompt"], "normal")
    logprobs = sampler._first_token_logprobs([prompt])
    (close_first,) = sampler._choose_first_tokens(
        [CompletionRequest("", start_mode=NO_THINK)], logprobs, torch.Generator()
    )
    assert close_first == (sampler.close, math.log(0.5))
    likeliest = logprobs[0].argsort(descending=True).tolist()
    starts = [token for token in likeliest if token not in (sampler.close, sampler.end)]
    others, rest = torch.logsumexp(logprobs[0, starts], dim=0), starts[:STARTS]
    drawn = {sampler.close: math.log(0.5)} | {t: math.log(0.5) + float(logprobs[0, t] - others) for t in rest}
    if not weighted:
        monkeypatch.setattr(type(trainer), "_set_behaviour_logps", lambda self, output, own: None)
    batch = first_token_batch(trainer, prompt, drawn)
    learnt = gradient(trainer, trainer._compute_loss(trainer.model, batch))
    chances = torch.softmax(trainer.model(torch.tensor([prompt])).logits[0, -1] / HEAT, dim=-1)
    value = REWARD_NO_THINK * chances[sampler.close] + REWARD_THINK * chances[rest].sum()
    return learnt, gradient(trainer, -value)


@pytest.mark.parametrize("weighted", [True, False])
def test_forced_first_tokens_give_the_gradient_of_the_policys_own_reward(
    weighted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learnt, true = trained_and_true_gradient(tmp_path / "out", monkeypatch, weighted=weighted)
    error = float((learnt - true).norm() / true.norm())
    # The planted bug treats forced starts as drawn from the policy, which then stops thinking far too fast.
    assert error < 1e-3 if weighted else error > 10


def test_forced_thinking_starts_are_drawn_with_their_log_probability(tmp_path: Path) -> None:
    made = make_recipe(
        "adaptthink", tmp_path / "out", rollouts={"batch": 512, "max_new_tokens": 8, "answer_reserve": 4}
    )
    rows = load_rows(made.data)
    _, sampler = build_trainer(made, rows, [NO_THINK, THINK] * 2)
    done = sampler([CompletionRequest(rows[0]["prompt"], start_mode=THINK)] * 400, seed=1)
    counts: dict[int, list[float]] = {}
    for rollout in done:
        assert rollout.first_token_logprob is not None and rollout.mode == THINK
        counts.setdefault(rollout.ids[0], []).append(2 * math.exp(rollout.first_token_logprob))
    for token, chances in counts.items():
        chance = chances[0]
        assert chances == [chance] * len(chances)
        assert abs(len(chances) / 400 - chance) < 4 * math.sqrt(chance * (1 - chance) / 400) + 0.01, token


def gradients_by_token(
    folder: Path, monkeypatch: pytest.MonkeyPatch, *, masked: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of the loss at tokens that the model sampled, and at those that the controller wrote."""
    made = make_recipe("adaptthink", folder, rollouts={"thinking_budget": 64})
    rows = [{**row, "reference": -1.0} for row in load_rows(made.data)]
    if not masked:
        monkeypatch.setattr(GroupRollouts, "loss_mask", lambda self, rollout: [1] * len(rollout.ids))
    seen: list[Any] = []
    fields = GroupRollouts.to_trl

    def noted(self: GroupRollouts, done: list[Any]) -> dict[str, Any]:
        seen.extend(done)
        return fields(self, done)

    monkeypatch.setattr(GroupRollouts, "to_trl", noted)
    trainer, _ = build_trainer(made, rows, [FREE] * 4, [*trainer_rewards()])
    trainer.model.train()
    inputs = [row for row in rows[:2] for _ in range(4)]
    batch = trainer._generate_and_score_completions([dict(row) for row in inputs])
    kept: list[torch.Tensor] = []
    inner = trainer._get_per_token_logps_and_entropies

    def keep(*args: Any, **kwargs: Any) -> Any:
        log_probabilities, *others = inner(*args, **kwargs)
        log_probabilities.retain_grad()
        kept.append(log_probabilities)
        return log_probabilities, *others

    monkeypatch.setattr(trainer, "_get_per_token_logps_and_entropies", keep)
    trainer.model.eval()  # or the loss would divide by accumulation steps, which only a running trainer has
    trainer._compute_loss(trainer.model, batch).backward()
    assert kept[0].grad is not None
    forced = torch.zeros_like(kept[0], dtype=torch.bool)
    for row, rollout in enumerate(seen):
        forced[row, : len(rollout.forced)] = torch.tensor(rollout.forced)
    real = batch["completion_mask"].bool()
    return kept[0].grad[real & ~forced].abs(), kept[0].grad[real & forced].abs()


@pytest.mark.parametrize("weight", [0.0, 1.0, 3.0])
def test_completions_are_weighted(weight: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = make_recipe("adaptthink", tmp_path / "out", rollouts={"max_new_tokens": 48, "answer_reserve": 16})
    rows = load_rows(made.data)
    fields = GroupRollouts.to_trl

    def weighed(self: GroupRollouts, done: list[Any]) -> dict[str, Any]:
        return {**fields(self, done), "weight": [1.0, weight] * 4, "solved": [True, True, False, False] * 2}

    monkeypatch.setattr(GroupRollouts, "to_trl", weighed)
    trainer, _ = build_trainer(made, rows, [FREE] * 4)
    trainer.model.train()
    output = trainer._generate_and_score_completions([dict(row) for row in rows[:2] for _ in range(4)])
    # The reward is 1 for solved completions, here without a baseline.
    assert output["advantages"].tolist() == [1.0, weight, 0.0, 0.0] * 2
    # The loss is a mean over tokens, each weighted like its completion.
    tokens = output["completion_mask"].sum(dim=1)
    assert float(output["num_items_in_batch"]) == float((tokens * torch.tensor([1.0, weight] * 4)).sum())


def test_completions_of_weight_0_are_left_out_of_the_group_mean(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_recipe(
        "apo", tmp_path / "out", rollouts={"max_new_tokens": 48, "answer_reserve": 16}, apo={"forced": 1}
    )
    rows = load_rows(made.data)
    fields = GroupRollouts.to_trl

    def weighed(self: GroupRollouts, done: list[Any]) -> dict[str, Any]:
        return {**fields(self, done), "weight": [0.0, 0.0, 1.0, 1.0] * 2, "solved": [False, False, True, True] * 2}

    monkeypatch.setattr(GroupRollouts, "to_trl", weighed)
    trainer, _ = build_trainer(made, rows, [FREE] * 4)
    trainer.credit = "group"
    trainer.model.train()
    output = trainer._generate_and_score_completions([dict(row) for row in rows[:2] for _ in range(4)])
    # All completions that count are right, so there is nothing to learn.
    assert output["advantages"].tolist() == [0.0] * 8


def trainer_rewards() -> list[Any]:
    from tersely.training.methods.adaptthink import ReferenceBaseline
    from tersely.training.rewards import Correctness

    return [Correctness(), ReferenceBaseline()]


@pytest.mark.parametrize("masked", [True, False])
def test_controller_text_is_masked_from_the_loss(masked: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own, others = gradients_by_token(tmp_path / "out", monkeypatch, masked=masked)
    assert len(others) > 20 and float(own.max()) > 0
    assert (float(others.max()) == 0) is masked
