"""What the model before training gets right by thinking, question by question: computed once, kept in a journal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .data import Row
from .processes import resumable_map
from .rewards.base import THINK
from .rewards.correctness import Correctness
from .sampling import CompletionRequest, Sampler


def reference_shares(
    sampler: Sampler,
    rows: Sequence[Row],
    samples: int,
    path: Path,
    seed: int,
    correct: Correctness,
    advance: Callable[[str], None] = lambda line: None,
) -> list[float]:
    """The share of `samples` thinking completions that are right, for each row.

    What is done is on disk before the next batch begins. Raises JournalError if the file is of another model, other
    questions or other settings.
    """
    identity: dict[str, Any] = {
        "fingerprint": sampler.engine.fingerprint(),
        "questions": [[row["id"], row["tier"], row["answer"]] for row in rows],
        "rollouts": sampler.settings.model_dump(mode="json", exclude={"prompts", "generations"}),
        "samples": samples,
        "seed": seed,
    }
    return resumable_map(
        path,
        identity,
        rows,
        max(1, sampler.settings.batch // samples),
        lambda part, start: _shares(sampler, part, samples, seed + start, correct),
        lambda done: advance(f"reference rewards: {done}/{len(rows)} questions"),
    )


def _shares(sampler: Sampler, rows: Sequence[Row], samples: int, seed: int, correct: Correctness) -> list[float]:
    made = sampler([CompletionRequest(row["prompt"], row["tier"], THINK) for row in rows for _ in range(samples)], seed)
    right = [
        correct.is_right(rows[i // samples]["answer"], rollout.response, rows[i // samples]["drawn"])
        for i, rollout in enumerate(made)
    ]
    return [sum(right[at : at + samples]) / samples for at in range(0, len(right), samples)]
