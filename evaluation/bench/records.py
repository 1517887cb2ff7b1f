"""Benchmark rows: the token counts and the grade of one generation, and all rows of an arm as arrays."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from ...controller.text.answers import extract_answer, extract_boxed
from ...controller.trace import GenerationResult
from ..economics.latency import Timing
from ..stats import Array
from ..tasks.equality import AnswerChecker
from ..tasks.questions import Question

KINDS = ("thinking", "answer", "overhead", "total")
OVERHEADS: Mapping[str, str] = {
    "discarded": "discarded",
    "probe": "trial",
    "verifier": "verifier",
    "delegated": "helper_completion",
    "consulted": "helper_prompt",
    "reprefilled": "recomputed",
}
"""Kinds of overhead by their name in a row, with their name in `Usage`."""
_COLUMNS: Mapping[str, str] = {"answer": "answer_tokens"}

_WORDS = {
    "hedging": "maybe perhaps possibly probably might likely seems unsure uncertain guess|not sure|i think|could be",
    "thinking": "wait hmm hm alternatively actually|hold on|let me think|let me check|let me see|on second thought",
    "discourse": "first second next then therefore thus hence so because since finally however|for example",
}
MARKERS: Mapping[str, re.Pattern[str]] = {
    kind: re.compile(rf"\b(?:{'|'.join([*words.split('|')[0].split(), *words.split('|')[1:]])})\b", re.IGNORECASE)
    for kind, words in _WORDS.items()
}
"""Words by the kind of marker that they are; the lists of Think Deep, Think Fast (arXiv 2504.14047) were not found."""


@dataclass(frozen=True, slots=True)
class Weights:
    """Cost of other tokens relative to one token that the model itself decodes.

    The helper writes `helper` tokens and reads `consulted` ones; the model reads `reprefilled` ones again.
    """

    helper: float = 1.0
    consulted: float = 1.0
    verifier: float = 1.0
    reprefilled: float = 1.0


@dataclass(frozen=True, slots=True)
class BenchRow:
    """One generation of one arm; counts are tokens.

    `overhead` and `total` are weighted, the single kinds of overhead are not. `outcome` is the answer checker's, see
    `tasks.equality`.
    """

    id: str
    task: str
    level: int | None
    tier: str
    arm: str
    rollout: int
    answer: str
    right: bool
    outcome: str
    capped: bool
    prompt: int
    thinking: int
    answer_tokens: int
    forced: int
    discarded: int
    probe: int
    verifier: int
    delegated: int
    consulted: int
    reprefilled: int
    overhead: float
    total: float
    words: int = 0  # of the thinking, and its markers, see `count_markers`
    hedging_markers: int = 0
    thinking_markers: int = 0
    discourse_markers: int = 0

    @property
    def markers(self) -> dict[str, int]:
        return {"words": self.words, **{kind: getattr(self, f"{kind}_markers") for kind in MARKERS}}

    @property
    def read(self) -> int:
        """Tokens that the model read, forced ones and those read again among them."""
        return self.prompt + self.reprefilled + self.forced

    @property
    def decoded(self) -> int:
        """Tokens that the model decoded, those that were dropped among them."""
        return self.thinking + self.answer_tokens + self.discarded + self.probe - self.forced


def to_row(
    question: Question,
    arm: str,
    rollout: int,
    generation: GenerationResult,
    checker: AnswerChecker,
    weights: Weights,
    own: float = 1.0,
) -> BenchRow:
    """Grade one generation and count its tokens; `own` is the weight of each token that the arm's model writes."""
    usage = generation.usage
    # A model that ends its turn while thinking may have stated its answer there; that must not count against an arm.
    answer = extract_answer(generation.answer) if generation.answer else extract_boxed(generation.thinking) or ""
    markers = count_markers(generation.thinking)
    graded = checker.grade(question, answer)
    overhead = (
        usage.discarded
        + usage.trial
        + weights.verifier * usage.verifier
        + weights.helper * usage.helper_completion
        + weights.consulted * usage.helper_prompt
        + weights.reprefilled * usage.recomputed
    )
    return BenchRow(
        id=question.id,
        task=question.task,
        level=question.level,
        tier=generation.tier,
        arm=arm,
        rollout=rollout,
        answer=answer,
        right=graded.equal,
        outcome=graded.outcome,
        capped=generation.finish_reason == "length",
        prompt=usage.prompt,
        thinking=usage.thinking,
        answer_tokens=usage.answer,
        forced=usage.injected,
        **{kind: getattr(usage, field) for kind, field in OVERHEADS.items()},
        overhead=overhead,
        total=own * (usage.thinking + usage.answer) + overhead,
        words=markers["words"],
        hedging_markers=markers["hedging"],
        thinking_markers=markers["thinking"],
        discourse_markers=markers["discourse"],
    )


@dataclass(frozen=True, slots=True)
class ArmRecords:
    """All rows of one arm, ordered by rollout, then by question.

    `engine_tokens` are by the engine's own count. A `truncated` arm was made by truncating the baseline's thinking: it
    has neither these nor seconds, and its `setting` says what was searched for it.
    """

    arm: str
    rows: Sequence[BenchRow]
    rollouts: int
    seconds: float | None = None
    engine_tokens: int | None = None
    setting: str = ""
    truncated: bool = False
    timings: Sequence[Timing] = ()  # of generations that ran alone, in batches of one

    def column(self, name: str) -> Array:
        """One field as an array [questions, rollouts]."""
        flat = np.array([getattr(row, _COLUMNS.get(name, name)) for row in self.rows], np.float64)
        return flat.reshape(self.rollouts, -1).T

    def means(self, name: str) -> Array:
        """One field averaged over rollouts, [questions]."""
        means: Array = self.column(name).mean(axis=1)
        return means

    def mean(self, name: str) -> float:
        """One field averaged over all generations."""
        return float(self.column(name).mean())


def count_markers(thinking: str) -> dict[str, int]:
    """The number of `words` of a thinking, and of its markers by kind."""
    found = {kind: len(pattern.findall(thinking)) for kind, pattern in MARKERS.items()}
    return {"words": len(thinking.split()), **found}


def compare_markers(thinkings: Iterable[tuple[bool, Mapping[str, int]]]) -> dict[str, dict[str, float]] | None:
    """Mean words of right and wrong thinking, and markers per 1,000 of them, from pairs of right and `count_markers`.

    None unless some are right and some are wrong.
    """
    groups: dict[str, list[Mapping[str, int]]] = {"right": [], "wrong": []}
    for right, counts in thinkings:
        groups["right" if right else "wrong"].append(counts)
    if not all(groups.values()):
        return None
    words = {name: fmean(counts["words"] for counts in group) for name, group in groups.items()}
    rates = {
        kind: {
            name: fmean(1000 * counts[kind] / max(1, counts["words"]) for counts in group)
            for name, group in groups.items()
        }
        for kind in MARKERS
    }
    return {"words": words, **rates}


def format_markers(figures: Mapping[str, Mapping[str, float]]) -> str:
    """What `compare_markers` found, in one line."""
    named = {"words of thinking" if kind == "words" else kind: one for kind, one in figures.items()}
    pairs = (f"{name} {one['right']:.1f} / {one['wrong']:.1f}" for name, one in named.items())
    return f"{', '.join(pairs)}; markers per 1,000 words"
