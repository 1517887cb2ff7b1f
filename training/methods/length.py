"""GRPO on free completions with rewards for length: DLER, LCPO-Max and SER-RL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from random import Random
from typing import Any, cast

from pydantic import Field

from ...controller.budgets import LCPO
from ...evaluation.runner import batch_seed
from ..config import AlwaysThinks, Recipe, RecipeError, Section
from ..preflight import CheckedRecipe, ResidentModels, check_recipe
from ..processes import world_size
from ..rewards import Correctness, GroupBrevity, Reward, TierAdherence, excess_penalty, require_column
from ..rollouts import Columns, GroupRollouts, Row
from ..sampling import CompletionRequest, Rollout, RolloutSampler
from ..training_run import TrainingRun
from . import Method


def _train(
    run: TrainingRun[Any],
    rewards: Mapping[Reward, float],
    rows: Sequence[Row] | None = None,
    rollouts: GroupRollouts | None = None,
    **options: Any,
) -> None:
    """Train on the weighted sum of rewards; `options` are arguments of `GRPOConfig`."""
    rollouts = rollouts or GroupRollouts(run.make_sampler(), run.recipe.seed)
    weights, alarm = list(rewards.values()), run.recipe.alarm
    run.train_grpo(rollouts, list(rewards), alarm=alarm, rows=rows, reward_weights=weights, **options)


class Dler(Section):
    """Settings."""

    clip_low: float = Field(default=0.2, gt=0, lt=1)
    clip_high: float = Field(default=0.28, gt=0)  # higher, so that unlikely tokens can become likelier
    resample: int = Field(default=3, ge=0)  # rounds in which groups without a difference get other questions


class DlerRecipe(Recipe):
    """The recipe of DLER (arXiv 2510.15110): be right within a hard limit of tokens, `rollouts.max_new_tokens`.

    Advantages are divided by the standard deviation of the batch in place of their group's, the upper clip is higher,
    and a group whose completions are all right or all wrong is replaced by that of another question. Different: not
    until there is none, but in at most `dler.resample` rounds; the adaptive limits and the merging are missing.
    """

    dler: Dler = Dler()
    alarm: AlwaysThinks = AlwaysThinks()


class Truncation(Reward):
    """Takes a right answer's reward back where the completion was cut; column `finish_reason`."""

    name = "truncation"

    def __init__(self, correct: Correctness) -> None:
        self.correct = correct

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
        reasons = require_column(columns, "finish_reason", self.name)
        right = self.correct(prompts, completions, **columns)
        return [
            -float(value or 0.0) if reason == "length" else 0.0 for value, reason in zip(right, reasons, strict=True)
        ]


class Resampling(GroupRollouts):
    """Gives a group whose completions are all right within the limit, or none, to another of `rows`.

    What the trainer logs is of the groups that are kept.
    """

    def __init__(
        self,
        sampler: RolloutSampler,
        seed: int,
        rows: Sequence[Row],
        correct: Correctness,
        rounds: int,
        size: int,  # of a group
    ) -> None:
        super().__init__(sampler, seed)
        self.rows, self.correct, self.rounds, self.size = rows, correct, rounds, size

    def sample(self, requests: Sequence[CompletionRequest], rows: Sequence[Columns], seed: int) -> list[Rollout]:
        """Sample one completion per request; changes the dataset rows of groups that are replaced."""
        requests, rollouts, known = list(requests), super().sample(requests, rows, seed), set[Any]()
        for number in range(self.rounds):
            indices = self._find_flat(rollouts, rows)
            known |= {row["id"] for row in rows}
            others = [row for row in self.rows if row["id"] not in known]
            count = min(len(indices) // self.size, len(others))
            chosen = Random(f"resample:{seed}:{number}").sample(others, count)
            indices = indices[: count * self.size]
            if not indices:
                break
            for at, index in enumerate(indices):
                fresh = chosen[at // self.size]
                cast(Row, rows[index]).update(fresh)  # the trainer's own list of prompts keeps the old ones
                requests[index] = replace(requests[index], prompt=fresh["prompt"], effort=fresh["tier"])
            again = super().sample([requests[i] for i in indices], [rows[i] for i in indices], batch_seed(seed, number))
            for index, rollout in zip(indices, again, strict=True):
                rollouts[index] = rollout
        return rollouts

    def _find_flat(self, rollouts: Sequence[Rollout], rows: Sequence[Columns]) -> list[int]:
        """The indices of all completions in groups without a difference."""
        columns = {name: [row.get(name) for row in rows] for name in ("answer", "gym_entry")}
        responses = [rollout.response for rollout in rollouts]
        right = self.correct(responses, responses, response=responses, **columns)
        kept = [bool(value) and one.finish_reason != "length" for value, one in zip(right, rollouts, strict=True)]
        size = self.size
        return [i for i in range(len(kept)) if len(set(kept[i - i % size :][:size])) == 1]


def grpo_options(settings: Dler) -> dict[str, Any]:
    """What `GRPOConfig` gets for DLER."""
    return {"scale_rewards": "batch", "epsilon": settings.clip_low, "epsilon_high": settings.clip_high, "beta": 0.0}


def _train_dler(run: TrainingRun[DlerRecipe]) -> None:
    recipe, settings = run.recipe, run.recipe.dler
    with Correctness(run.checked.markers.close) as correct:
        size = recipe.rollouts.generations
        rollouts = Resampling(run.make_sampler(), recipe.seed, run.checked.rows, correct, settings.resample, size)
        _train(run, {correct: 1.0, Truncation(correct): 1.0}, rollouts=rollouts, **grpo_options(settings))


def _check_dler(recipe: DlerRecipe) -> CheckedRecipe:
    if recipe.dler.resample and recipe.rollouts.prompts % world_size():
        raise RecipeError(
            f"rollouts.prompts is {recipe.rollouts.prompts} for {world_size()} processes, which would split groups; "
            "choose a multiple, or set dler.resample to 0",
            code="split_groups",
        )
    return check_recipe(recipe)


DLER = Method(recipe=DlerRecipe, validate=_check_dler, train=_train_dler)


class Lcpo(Section):
    """Settings."""

    least: int = Field(default=100, ge=1)  # of the limits, in tokens
    most: int = Field(default=4000, ge=1)
    alpha: float = Field(default=0.0003, gt=0)  # reward for each token below the limit
    delta: float = Field(default=0.5, ge=0, le=1)  # reward of a right answer at the limit
    kl: float = Field(default=0.0, ge=0)


class LcpoRecipe(Recipe):
    """The recipe of LCPO-Max of L1 (arXiv 2503.04697): be right within a number of tokens that the prompt states.

    Each question gets a limit, drawn evenly between `least` and `most`, and the authors' sentence about it. At run time
    the strategy `lcpo` states the budget that applies in the same sentence. Different: the authors train Exact first
    and Max from there; the KL term is off by default.
    """

    lcpo: Lcpo = Lcpo()
    alarm: AlwaysThinks = AlwaysThinks()


class LengthControl(Reward):
    """clip(alpha * (limit - tokens) + delta, 0, 1) for a right answer, else 0; columns `limit`, `completion_ids`."""

    name = "length_control"

    def __init__(self, correct: Correctness, alpha: float = 0.0003, delta: float = 0.5) -> None:
        self.correct, self.alpha, self.delta = correct, alpha, delta

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
        limits = require_column(columns, "limit", self.name)
        tokens = [len(ids) for ids in require_column(columns, "completion_ids", self.name)]
        right = self.correct(prompts, completions, **columns)
        scores = [self.alpha * (limit - used) + self.delta for limit, used in zip(limits, tokens, strict=True)]
        return [float(value or 0.0) * min(1.0, max(0.0, score)) for value, score in zip(right, scores, strict=True)]


def with_limits(rows: Sequence[Row], settings: Lcpo, seed: int) -> list[Row]:
    """The rows with a limit each, which the last message states."""
    rng, limited = Random(f"lcpo:{seed}"), []
    for row in rows:
        limit = rng.randint(settings.least, settings.most)
        *before, last = row["prompt"]
        content = f"{last['content']}\n\n{LCPO.replace('{budget}', str(limit))}"
        limited.append({**row, "prompt": [*before, {**last, "content": content}], "limit": limit})
    return limited


def _check_lcpo(recipe: LcpoRecipe) -> CheckedRecipe:
    if recipe.lcpo.least > recipe.lcpo.most:
        raise RecipeError(
            f"lcpo.least is {recipe.lcpo.least}, above lcpo.most, which is {recipe.lcpo.most}; swap them",
            code="invalid_value",
        )
    return check_recipe(recipe, resident=ResidentModels(reference=bool(recipe.lcpo.kl)))


def _train_lcpo(run: TrainingRun[LcpoRecipe]) -> None:
    settings = run.recipe.lcpo
    rows = with_limits(run.checked.rows, settings, run.recipe.seed)
    with Correctness(run.checked.markers.close) as correct:
        rewards = {correct: 0.0, LengthControl(correct, settings.alpha, settings.delta): 1.0}
        _train(run, rewards, rows, beta=settings.kl)


LCPO_MAX = Method(recipe=LcpoRecipe, validate=_check_lcpo, train=_train_lcpo)


class Ser(Section):
    """Settings."""

    brevity: float = Field(default=0.2, gt=0, lt=1)  # its weight, relative to 1 for a right answer
    min_accuracy: float = Field(default=0.5, ge=0, le=1)  # share of a group that is right before brevity counts
    adherence: float = Field(default=0.0, ge=0)  # weight of keeping to the tier's budget; 0 for none
    hint_weight: float = Field(default=0.0, ge=0)  # weight of being brief after a hint; 0 for none
    after_hint_tokens: int = Field(default=128, ge=1)  # thinking tokens after a hint that are still brief
    kl: float = Field(default=0.0, ge=0)  # weight of the KL divergence from the model before training


class SerRecipe(Recipe):
    """The recipe of SER-RL (arXiv 2506.15647): be right, and brief relative to one's own right answers.

    We found no formula of its reward; `GroupBrevity` is ours.
    """

    ser: Ser = Ser()
    alarm: AlwaysThinks = AlwaysThinks()


class HintBudget(Reward):
    """0 if thinking ends within `tokens` after its first hint, down to -1 at twice that; None without a hint.

    Column `after_hint`: the model's own thinking tokens after the hint, None without one.
    """

    name = "hint_budget"

    def __init__(self, tokens: int = 128) -> None:
        self.tokens = tokens

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
        counts = require_column(columns, "after_hint", self.name)
        return [None if count is None else excess_penalty(count, self.tokens) for count in counts]


def _check_ser(recipe: SerRecipe) -> CheckedRecipe:
    if recipe.ser.hint_weight and "hint" not in recipe.rollouts.policies:
        raise RecipeError(
            f"ser.hint_weight is {recipe.ser.hint_weight:g}, but rollouts.policies has no hint; add "
            "`policies: {hint: {}}`, or set it to 0",
            code="no_hint_policy",
        )
    return check_recipe(recipe, resident=ResidentModels(reference=bool(recipe.ser.kl)))


def _train_ser(run: TrainingRun[SerRecipe]) -> None:
    settings = run.recipe.ser
    with Correctness(run.checked.markers.close) as correct:
        rewards: dict[Reward, float] = {correct: 1.0}
        rewards[GroupBrevity(correct, settings.brevity, settings.min_accuracy)] = 1.0
        if settings.adherence:
            rewards[TierAdherence()] = settings.adherence
        if settings.hint_weight:
            rewards[HintBudget(settings.after_hint_tokens)] = settings.hint_weight
        _train(run, rewards, beta=settings.kl)


SER = Method(recipe=SerRecipe, validate=_check_ser, train=_train_ser)
