"""Completions to learn from later: sampled once, graded, and kept in a resumable file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from typing import TypeVar

from .config import Recipe
from .preflight import Row
from .processes import resumable_map
from .rewards import Correctness
from .sampling import FREE, CompletionRequest, RolloutSampler
from .training_run import TrainingRun

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
    rows, seed, markers = run.checked.rows, run.recipe.seed, run.checked.markers
    identity = {
        "fingerprint": sampler.engine.fingerprint(),
        "questions": [[row["id"], row["tier"], row["answer"]] for row in rows],
        "rollouts": sampler.settings.model_dump(mode="json", exclude={"prompts", "generations"}),
        "samples": samples,
        "seed": seed,
        "effort": effort,
    }
    with Correctness(markers.close) as correct:

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


def shortest_right(traces: Sequence[SampledTrace], keep: int) -> list[SampledTrace]:
    """The shortest right completions of a question that the model ended itself."""
    return sorted((t for t in traces if t.right and t.finished), key=lambda t: t.length)[:keep]


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


@dataclass(frozen=True, slots=True)
class PreferencePair:
    """Two completions of one question; `level` names what they were compared by."""

    level: str
    chosen: SampledTrace
    rejected: SampledTrace
