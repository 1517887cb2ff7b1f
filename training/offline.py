"""Completions sampled once, graded, kept in a resumable file, and learned by TRL's SFT and DPO trainers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from random import Random
from typing import TYPE_CHECKING, Any, TypeVar

from ..controller.engines.transformers.engine import TransformersEngine
from .config import Recipe, RecipeError
from .preflight import make_lora_config
from .processes import resumable_map
from .rewards import Correctness
from .rollouts import Row
from .sampling import FREE, CompletionRequest, RolloutSampler
from .training_run import Finish, TrainingRun

if TYPE_CHECKING:
    from .trainer import TokenDPOTrainer

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class SampledTrace:
    """A completion to learn, under its own prompt or under that of another tier."""

    prompt_ids: list[int]
    ids: list[int]
    loss_mask: list[int]  # 1 for each token that counts in the loss
    right: bool
    finished: bool  # whether the model ended the completion itself

    @property
    def length(self) -> int:
        """Tokens of the completion."""
        return len(self.ids)


def collect_traces(
    run: TrainingRun[Recipe], sampler: RolloutSampler, name: str, samples: int, effort: str | None = None
) -> list[list[SampledTrace]]:
    """The completions of each question, see `map_samples`; `effort` is the tier to sample in, None for its own."""
    stored = map_samples(run, sampler, lambda traces: [asdict(one) for one in traces], name, samples, effort=effort)
    return [[SampledTrace(**values) for values in group] for group in stored]


def map_samples(
    run: TrainingRun[Recipe],
    sampler: RolloutSampler,
    keep: Callable[[list[SampledTrace]], T],
    name: str,
    samples: int,
    *,
    effort: str | None = None,
    start_mode: str = FREE,
) -> list[T]:
    """What `keep` makes of graded completions of each question, resumed from the file `name`.jsonl of the run.

    Traces have the prompt of the question's own tier, so that it can learn what another tier writes. Raises
    CheckpointLogError if the file belongs to other settings.
    """
    rows, seed = run.checked.rows, run.recipe.seed
    identity = {
        "fingerprint": sampler.engine.fingerprint(),
        "questions": [[row["id"], row["tier"], row["answer"]] for row in rows],
        "rollouts": sampler.settings.model_dump(mode="json", exclude={"prompts", "generations"}),
        "samples": samples,
        "seed": seed,
        "effort": effort,
    }
    with Correctness(run.checked.markers.close) as correct:

        def sample(part: Sequence[Row], start: int) -> list[T]:
            repeated = [row for row in part for _ in range(samples)]
            requests = [CompletionRequest(row["prompt"], effort or row["tier"], start_mode) for row in repeated]
            prompts = {row["id"]: list(sampler.prompt_ids(row["prompt"], row["tier"])) for row in part}
            traces = [
                SampledTrace(
                    prompt_ids=prompts[row["id"]],
                    ids=list(rollout.ids),
                    loss_mask=[int(not forced) for forced in rollout.forced],
                    right=correct.is_right(row["answer"], rollout.response, row["gym_entry"]),
                    finished=rollout.finish_reason == "stop",
                )
                for row, rollout in zip(repeated, sampler(requests, seed + start), strict=True)
            ]
            return [keep(traces[at : at + samples]) for at in range(0, len(traces), samples)]

        path, size = run.folder / f"{name}.jsonl", max(1, sampler.settings.batch // samples)
        progress = f"{name}: {{}}/{len(rows)} questions"
        return resumable_map(path, identity, rows, size, sample, lambda done: run.log(progress.format(done)))


def choose_shortest(groups: Sequence[Sequence[SampledTrace]], keep: int) -> list[SampledTrace]:
    """The shortest right completions of each question that the model ended itself; raises RecipeError for none."""
    usable = [[trace for trace in group if trace.right and trace.finished] for group in groups]
    kept = [trace for group in usable for trace in sorted(group, key=lambda t: t.length)[:keep]]
    if not kept:
        raise RecipeError(
            f"{sum(map(len, groups))} completions of {len(groups)} questions could be learned, but none is right and "
            "was ended by the model; use easier questions, or raise rollouts.max_new_tokens",
            code="nothing_to_learn",
        )
    return kept


def split_by_mask(trace: SampledTrace) -> list[tuple[int, list[int]]]:
    """The completion in runs of tokens with the same mask value."""
    runs = groupby(zip(trace.ids, trace.loss_mask, strict=True), key=lambda pair: pair[1])
    return [(mask, [token for token, _ in run]) for mask, run in runs]


def to_sft(trace: SampledTrace, close: int) -> SampledTrace:
    """The completion as if the model had done by itself what a controller made it do.

    Forced text that closes the thinking (with the token `close`) is learned; all other, such as hints, is removed.
    """
    ids = [token for mask, tokens in split_by_mask(trace) if mask or close in tokens for token in tokens]
    return replace(trace, ids=ids, loss_mask=[1] * len(ids))


def train_sft(
    run: TrainingRun[Recipe], engine: TransformersEngine, traces: Sequence[SampledTrace], finish: Finish | None = None
) -> None:
    """Learn to write these completions, except for masked tokens, and write the model."""
    from datasets import Dataset

    from .trainer import SFTConfig, TokenSFTTrainer

    rows = [
        {
            "input_ids": [*trace.prompt_ids, *trace.ids],
            "labels": [
                *[-100] * len(trace.prompt_ids),
                *(token if keep else -100 for token, keep in zip(trace.ids, trace.loss_mask, strict=True)),
            ],
        }
        for trace in traces
    ]
    trainer = TokenSFTTrainer(
        model=engine.model,
        args=SFTConfig(**_offline_arguments(run), max_length=None, packing=False),
        train_dataset=Dataset.from_list(schedule_examples(rows, run.recipe)),
        processing_class=engine.tokenizer,
        peft_config=make_lora_config(run.recipe.optimizer.lora),
        callbacks=run.make_callbacks(),
    )
    run.run_trainer(trainer, finish)


@dataclass(frozen=True, slots=True)
class PreferencePair:
    """Two completions of one question; `level` names what they were compared by."""

    level: str
    chosen: SampledTrace
    rejected: SampledTrace

    def to_example(self) -> dict[str, Any]:
        """The pair in the format of TRL's collator, with the masks of both completions."""
        return {
            "prompt_ids": self.chosen.prompt_ids,
            "chosen_ids": self.chosen.ids,
            "rejected_ids": self.rejected.ids,
            "loss_mask": [self.chosen.loss_mask, self.rejected.loss_mask],
        }


def build_dpo_trainer(
    run: TrainingRun[Recipe],
    model: Any,
    tokenizer: Any,
    examples: Sequence[dict[str, Any]],
    *,
    beta: float,
    nll_weight: float,
    trainer_class: type[TokenDPOTrainer] | None = None,
    **options: Any,
) -> TokenDPOTrainer:
    """Build a DPO trainer on the examples of all steps in order, see `PreferencePair.to_example`.

    `nll_weight` weighs the negative log-likelihood of the chosen completions, which DPO alone may lower; `options` are
    further arguments of `DPOConfig`.
    """
    from datasets import Dataset

    from .trainer import DPOConfig, TokenDPOTrainer

    arguments, kind = {**_offline_arguments(run), **options}, trainer_class or TokenDPOTrainer
    if nll_weight:
        arguments |= {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, nll_weight]}
    # Padding is masked, so any token will do.
    padding = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    return kind(
        model=model,
        args=DPOConfig(**arguments, max_length=None, beta=beta, remove_unused_columns=False),
        train_dataset=Dataset.from_list(list(examples)),
        processing_class=tokenizer,
        data_collator=kind.collator(pad_token_id=padding),
        peft_config=make_lora_config(run.recipe.optimizer.lora),
        callbacks=run.make_callbacks(),
    )


def schedule_examples(examples: list[Any], recipe: Recipe) -> list[Any]:
    """The examples of all steps, in one shuffled pass after another; written out, so resuming keeps the order."""
    needed = recipe.optimizer.steps * recipe.rollouts.prompts
    rng = Random(f"examples:{recipe.seed}")
    scheduled: list[Any] = []
    while len(scheduled) < needed:
        scheduled += rng.sample(examples, len(examples))
    return scheduled[:needed]


def _offline_arguments(run: TrainingRun[Recipe]) -> dict[str, Any]:
    return {**run.trainer_arguments(run.recipe.rollouts.prompts), "train_sampling_strategy": "sequential"}
