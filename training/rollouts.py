"""The questions of a training run, rollouts for TRL's GRPOTrainer, and the statistics that are logged about them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from random import Random
from statistics import fmean
from typing import Any

from ..evaluation.agents.tasks import KINDS, Task, draw_tasks, get_system_prompt
from ..evaluation.runner import batch_seed
from ..evaluation.tasks.questions import Question, load
from .config import Data
from .rewards import AGENTIC, NO_THINK, THINK
from .sampling import FREE, CompletionRequest, Rollout, RolloutSampler

COLUMNS = (
    *("mode", "start_mode", "p_no_think", "response", "thinking_tokens", "response_tokens", "finish_reason"),
    *("after_hint", "weight", "solved"),
)
"""Fields of `Rollout` that rewards and statistics get as columns."""

Columns = Mapping[str, Any]
Row = dict[str, Any]
"""A question. Columns: id, prompt (messages), answer, gym_entry (name, seed and index in reasoning-gym), tier, level
(the kind, for agent tasks). Methods add columns of their own."""


def load_tasks(data: Data) -> list[Task] | None:
    """The tasks named by `agents` or `agents:KIND,KIND`; None for questions without tools. Raises OptionError."""
    name, _, kinds = data.task.partition(":")
    if name != "agents":
        return None
    chosen = tuple(kind.strip() for kind in kinds.split(",")) if kinds else KINDS
    return draw_tasks(data.split, data.seed, data.questions, chosen)


def load_rows(data: Data, model: str = "") -> list[Row]:
    """One row per question, with efforts assigned in turn, and the system prompt of the model; raises TaskError."""
    tasks, system = load_tasks(data), None
    if tasks is None:
        questions = load(data.task, data.split, data.questions, data.seed)
    else:
        system = get_system_prompt(model)
        questions = [Question(task.id, task.question, "; ".join(sorted(task.gold)), kind=task.kind) for task in tasks]
    head = [] if system is None else [{"role": "system", "content": system}]
    return [
        {
            "id": question.id,
            "prompt": [*head, {"role": "user", "content": question.problem}],
            "answer": question.answer,
            "gym_entry": None if question.drawn is None else asdict(question.drawn),
            "tier": data.efforts[i % len(data.efforts)],
            "level": question.kind if question.level is None else question.level,
        }
        for i, question in enumerate(questions)
    ]


def schedule_rows(rows: Sequence[Row], steps: int, size: int, seed: int) -> list[Row]:
    """The rows of all steps, `size` distinct ones each, in shuffled passes; written out, so a resumed run agrees."""
    rng, order = Random(f"schedule:{seed}"), list(range(len(rows)))
    usable = len(rows) - len(rows) % size
    scheduled: list[Row] = []
    while len(scheduled) < steps * size:
        rng.shuffle(order)
        scheduled += [rows[i] for i in order[:usable]]
    return scheduled[: steps * size]


class GroupRollouts:
    """A `rollout_func` of TRL: called with prompts, each repeated once per completion; their tiers are inputs."""

    def __init__(self, sampler: RolloutSampler, seed: int, plan: Sequence[str] = (FREE,)) -> None:
        """`plan` has the start modes of a group, in turn; first tokens of forced completions count in the loss."""
        self.sampler, self.plan, self.seed = sampler, tuple(plan), seed

    def __call__(self, prompts: Sequence[Any], trainer: Any) -> dict[str, Any]:
        from trl.models.utils import unwrap_model_for_generation

        process, rows = trainer.accelerator.process_index, trainer.rollout_inputs
        first = process * len(prompts)
        requests = [
            CompletionRequest(
                prompt, row["tier"], self.plan[(first + i) % len(self.plan)] if trainer.model.training else FREE
            )
            for i, (prompt, row) in enumerate(zip(prompts, rows, strict=True))
        ]
        seed = batch_seed(self.seed, trainer.state.global_step, process)
        unwrapped = unwrap_model_for_generation(
            trainer.model_wrapped,
            trainer.accelerator,
            gather_deepspeed3_params=trainer.args.ds3_gather_for_generation,
            gradient_checkpointing_kwargs=trainer.args.gradient_checkpointing_kwargs,
        )
        with unwrapped as model, trainer.accelerator.autocast():
            self.sampler.engine.model = model.get_base_model() if hasattr(model, "get_base_model") else model
            rollouts = self.sample(requests, rows, seed)
            extra = self.extra_columns(rollouts, rows, seed)
        return {**self.to_trl(rollouts), **extra}

    def sample(self, requests: Sequence[CompletionRequest], rows: Sequence[Columns], seed: int) -> list[Rollout]:
        """Sample one completion per request; `rows` are the dataset rows of the requests."""
        return self.sampler(requests, seed)

    def extra_columns(self, rollouts: Sequence[Rollout], rows: Sequence[Columns], seed: int) -> dict[str, list[Any]]:
        """Further columns of these completions; `rows` are their dataset rows."""
        return {}

    def to_trl(self, rollouts: Sequence[Rollout]) -> dict[str, Any]:
        """Rollouts in TRL's format. A log-probability of None marks a token drawn from the policy itself."""
        return {
            "prompt_ids": [list(r.prompt_ids) for r in rollouts],
            "completion_ids": [list(r.ids) for r in rollouts],
            "logprobs": [[r.first_token_logprob, *[None] * (len(r.ids) - 1)] for r in rollouts],
            "env_mask": [self.loss_mask(r) for r in rollouts],
            **{name: [getattr(r, name) for r in rollouts] for name in COLUMNS},
        }

    def loss_mask(self, rollout: Rollout) -> list[int]:
        """1 for each token that counts in the loss, 0 for text of the controller."""
        return [int(not forced) for forced in rollout.forced]


def rollout_statistics(rows: Sequence[Columns], empty_tokens: int) -> dict[str, float]:
    """Statistics of the completions of a step, by mode, tier and level, and of the policy itself.

    Forced completions do not show how often the policy would choose their mode; weighted by the probability of the
    first token, they do. `rows` have the columns of a completion and `right`.
    """
    stats = {"unfinished": _mean(rows, lambda r: r["finish_reason"] == "length")}
    for mode in (THINK, NO_THINK, AGENTIC):
        if of_mode := [row for row in rows if row["mode"] == mode and row["weight"]]:
            stats[f"modes/{mode}/accuracy"] = _mean(of_mode, _right)
            stats[f"modes/{mode}/tokens"] = _mean(of_mode, _tokens)
            if mode == THINK:
                stats["modes/think/empty"] = _mean(of_mode, lambda r: r["thinking_tokens"] < empty_tokens)
    groups = {"policy": rows}
    for kind in ("tier", "level"):
        for value in sorted({row[kind] for row in rows if row.get(kind) is not None}):
            groups[f"{kind}/{value}"] = [row for row in rows if row[kind] == value]
    for name, group in groups.items():
        stats[f"{name}/accuracy"] = policy_mean(group, _right)
        stats[f"{name}/tokens"] = policy_mean(group, _tokens)
        stats[f"{name}/no_think"] = _mean(group, lambda r: r["p_no_think"])
    return stats


def policy_mean(rows: Sequence[Columns], value: Callable[[Columns], float]) -> float:
    """The mean of a value under the policy itself, averaged over questions.

    Free completions are samples of the policy; without any, each mode is weighted by the policy's probability of it.
    """
    questions: dict[str, list[Columns]] = {}
    for row in rows:
        questions.setdefault(row["id"], []).append(row)
    return fmean(_question_mean(group, value) for group in questions.values())


def _question_mean(rows: Sequence[Columns], value: Callable[[Columns], float]) -> float:
    free = [row for row in rows if row["start_mode"] == FREE]
    think, no_think = ([row for row in rows if row["start_mode"] == mode] for mode in (THINK, NO_THINK))
    if free or not think or not no_think:
        return _mean(free or rows, value)
    share = fmean(row["p_no_think"] for row in rows)
    return (1 - share) * _mean(think, value) + share * _mean(no_think, value)


def _right(row: Columns) -> float:
    return float(row["right"])


def _tokens(row: Columns) -> float:
    return float(row["thinking_tokens"] + row["response_tokens"])


def _mean(rows: Sequence[Columns], value: Callable[[Columns], float]) -> float:
    return fmean(float(value(row)) for row in rows)
