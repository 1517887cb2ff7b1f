"""Completions kept for learning from them afterwards: sampled once, graded, written to a journal."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from .data import Row
from .processes import resumable_map
from .rewards.correctness import Correctness
from .sampling import CompletionRequest, Sampler


@dataclass(frozen=True, slots=True)
class SampledTrace:
    """A completion of a prompt, or of another tier's prompt: ids, which of them the loss may have, whether it is right.

    whole: the model ended it itself.
    """

    prompt_ids: list[int]
    ids: list[int]
    learnt: list[int]
    right: bool
    whole: bool

    @property
    def length(self) -> int:
        """Tokens of the completion."""
        return len(self.ids)


def collect(
    sampler: Sampler,
    rows: Sequence[Row],
    samples: int,
    path: Path,
    *,
    seed: int,
    correct: Correctness,
    effort: str | None = None,
    identity: Mapping[str, Any] | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> list[list[SampledTrace]]:
    """`samples` completions of each row, sampled in the tier `effort`, by default the row's own.

    A trace stands under the prompt of the row's own tier: what another tier wrote can be learnt for it. identity: what
    else decides the result. A run that was killed goes on where it was; raises JournalError for one of other settings.
    """

    def make(part: Sequence[Row], start: int) -> list[list[dict[str, Any]]]:
        made = _traces(sampler, part, samples, seed + start, correct, effort)
        return [[asdict(trace) for trace in traces] for traces in made]

    whole = {
        "fingerprint": sampler.engine.fingerprint(),
        "questions": [[row["id"], row["tier"], row["answer"]] for row in rows],
        "rollouts": sampler.settings.model_dump(mode="json", exclude={"prompts", "generations"}),
        "samples": samples,
        "effort": effort,
        "seed": seed,
        **(identity or {}),
    }
    size = max(1, sampler.settings.batch // samples)
    found = resumable_map(path, whole, rows, size, make, lambda done: say(f"{path.stem}: {done}/{len(rows)} questions"))
    return [[SampledTrace(**trace) for trace in traces] for traces in found]


def _traces(
    sampler: Sampler, rows: Sequence[Row], samples: int, seed: int, correct: Correctness, effort: str | None
) -> list[list[SampledTrace]]:
    asked = [row for row in rows for _ in range(samples)]
    done = sampler([CompletionRequest(row["prompt"], effort or row["tier"]) for row in asked], seed)
    prompts = {row["id"]: list(sampler.prompt_ids(row["prompt"], row["tier"])) for row in rows}
    made = [
        SampledTrace(
            prompt_ids=prompts[row["id"]],
            ids=list(rollout.ids),
            learnt=[int(not forced) for forced in rollout.forced],
            right=correct.is_right(row["answer"], rollout.response, row["drawn"]),
            whole=rollout.finish_reason == "stop",
        )
        for row, rollout in zip(asked, done, strict=True)
    ]
    return [made[at : at + samples] for at in range(0, len(made), samples)]


def shortest_right(traces: Sequence[SampledTrace], keep: int) -> list[SampledTrace]:
    """The shortest right completions of a question that the model ended itself."""
    return sorted((t for t in traces if t.right and t.whole), key=lambda t: t.length)[:keep]


def to_sft(trace: SampledTrace, close: int) -> SampledTrace:
    """The completion as if the model had done by itself what a controller made it do.

    What ended the thinking (close is the token that does) is learnt; what was written in between is left out, so that
    what it brought about is learnt without it.
    """
    runs = groupby(zip(trace.ids, trace.learnt, strict=True), key=lambda pair: pair[1])
    kept = [(mine, [token for token, _ in run]) for mine, run in runs]
    ids = [token for mine, tokens in kept if mine or close in tokens for token in tokens]
    return replace(trace, ids=ids, learnt=[1] * len(ids))


def to_rewritten(trace: SampledTrace, tokenizer: Any, words: str, others: str) -> SampledTrace | None:
    """The completion with other words in place of those that a policy wrote into it; None if it wrote none."""
    ids: list[int] = []
    learnt: list[int] = []
    found = False
    for mine, run in groupby(zip(trace.ids, trace.learnt, strict=True), key=lambda pair: pair[1]):
        tokens = [token for token, _ in run]
        text = "" if mine else tokenizer.decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        if words in text:
            found = True
            tokens = tokenizer.encode(text.replace(words, others), add_special_tokens=False)
        ids += tokens
        learnt += [mine] * len(tokens)
    return replace(trace, ids=ids, learnt=learnt) if found else None
