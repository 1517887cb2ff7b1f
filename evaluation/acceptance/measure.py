"""Measuring an embedded model: what its thinking is worth, per level and mode, on fresh problems.

Facts only, as plain numbers; `bars.py` judges them and `cli.py` prints them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from ...controller.options import GenerationOptions
from ...controller.policies.base import Inject, PolicyView, Wait, Watching
from ...controller.text.tokenizer_adapter import TokenizerAdapter
from ...controller.trace import GenerationResult
from ...controller.types import SamplingParams
from ..stats import auroc, paired_bootstrap
from ..tasks.questions import Question
from ..tasks.toy_programs import HARD_HALF, LEVELS
from ..trace_analysis import TraceReading, read

MODES = ("none", "easy", "normal", "hard")
GREEDY = "normal (greedy)"
HINT_AT = 0.3
MAX_NEW_TOKENS = 1536
_CARD = GenerationOptions(preset="off", max_new_tokens=MAX_NEW_TOKENS)

Answer = Callable[[Sequence[Question], GenerationOptions], list[GenerationResult]]
"""Answers questions under options, in order: all that a measured model has to bring."""


@dataclass(frozen=True, slots=True)
class HintOnce(Policy):
    """Inject one hint at the first sentence end after `at` thinking tokens."""

    name: ClassVar[str] = "hint once"
    at: int
    text: str = "[Be concise.]"

    def watch(self, view: PolicyView) -> Watching:
        """See `Policy.watch`."""
        yield Wait(at=self.at, boundary="sentence")
        yield Inject(self.text, f"once, after {self.at} thinking tokens")


@dataclass(frozen=True, slots=True)
class Run:
    """One mode's readings of the same questions, in order."""

    questions: Sequence[Question]
    readings: Sequence[TraceReading]
    prompts: Sequence[int]
    capped: Sequence[bool]

    @property
    def right(self) -> list[bool]:
        """Whether each final answer is the gold one."""
        return [r.final == q.answer for q, r in zip(self.questions, self.readings, strict=True)]

    @property
    def thinking(self) -> list[int]:
        """Thinking tokens of each."""
        return [r.tokens for r in self.readings]

    def and_of(self, other: Run) -> Run:
        """This run and another one."""
        return Run(
            [*self.questions, *other.questions],
            [*self.readings, *other.readings],
            [*self.prompts, *other.prompts],
            [*self.capped, *other.capped],
        )

    def of_levels(self, levels: Sequence[int]) -> Run:
        """The part of these levels."""
        keep = [i for i, q in enumerate(self.questions) if q.level in levels]
        return Run(
            [self.questions[i] for i in keep],
            [self.readings[i] for i in keep],
            [self.prompts[i] for i in keep],
            [self.capped[i] for i in keep],
        )


def measure(
    answer: Answer,
    codec: TokenizerAdapter,
    questions: Sequence[Question],
    more: Sequence[Question] = (),
    *,
    greedy: bool,
) -> dict[str, Any]:
    """All facts of the card; `greedy` makes all modes greedy, otherwise greedy comes as a mode of its own.

    more: questions beside those, for what can be foretold alone, as a good model makes too few mistakes on a few.
    """
    options = replace(_CARD, sampling=SamplingParams(temperature=0.0)) if greedy else _CARD
    runs = {mode: as_run(codec, questions, answer(questions, replace(options, effort=mode))) for mode in MODES}
    if not greedy:
        cold = replace(_CARD, sampling=SamplingParams(temperature=0.0))
        runs[GREEDY] = as_run(codec, questions, answer(questions, cold))
    foretold = runs["normal"]
    if more:
        foretold = foretold.and_of(as_run(codec, more, answer(more, replace(options, effort="normal"))))
    return {
        "sampling": "greedy" if greedy else "the model's own",
        "modes": {mode: by_level(run) for mode, run in runs.items()},
        "hint": hint_effect(answer, codec, runs["normal"], options),
        "foretold": {"n": len(foretold.questions), "wrong": foretold.right.count(False)},
        "auroc": predictable(foretold),
    }


def as_run(codec: TokenizerAdapter, questions: Sequence[Question], made: Sequence[GenerationResult]) -> Run:
    """Read generations."""
    return Run(
        questions,
        [read(g, codec) for g in made],
        [g.usage.prompt for g in made],
        [g.finish_reason == "length" for g in made],
    )


def by_level(run: Run) -> dict[str, dict[str, float]]:
    """The cells of one mode: each level, the hard half and all."""
    cells = {str(level): cell(run.of_levels([level])) for level in LEVELS}
    cells["hard half"] = cell(run.of_levels(HARD_HALF))
    cells["all"] = cell(run)
    return {name: c for name, c in cells.items() if c["n"]}


def cell(run: Run) -> dict[str, float]:
    """Counts and shares of one set of generations; shares are of 1."""
    n = len(run.questions)
    if not n:
        return {"n": 0}
    pairs = list(zip(run.questions, run.readings, run.right, strict=True))
    first = [r.first == q.answer for q, r, _ in pairs]
    changes = [r.changes(q.answer) for q, r, _ in pairs]
    tokens = sum(run.thinking)
    verdicts = [v for r in run.readings for v in r.verdicts]
    return {
        "n": n,
        "accuracy": sum(run.right) / n,
        "first_accuracy": sum(first) / n,
        "thinking": tokens / n,
        "after_share": sum(r.after for r in run.readings) / tokens if tokens else 0.0,
        "repaired": sum(right and not f for (_, _, right), f in zip(pairs, first, strict=True)),
        "spoilt": sum(f and not right for (_, _, right), f in zip(pairs, first, strict=True)),
        "rechecks": len(verdicts) / n,
        "honest_verdicts": sum(verdicts) / len(verdicts) if verdicts else 1.0,
        "helped": sum(c[0] for c in changes),
        "harmed": sum(c[1] for c in changes),
        "capped": sum(run.capped) / n,
    }


def hint_effect(answer: Answer, codec: TokenizerAdapter, plain: Run, options: GenerationOptions) -> dict[str, Any]:
    """What one hint at about 30 % of a level's typical thinking does to the same problems."""
    parts = []
    for level in LEVELS:
        base = plain.of_levels([level])
        if not base.questions:
            continue
        at = max(1, round(HINT_AT * float(np.median(base.thinking))))
        hinted = replace(options, policies=(HintOnce(at),))
        made = answer(base.questions, hinted)
        parts.append((str(level), at, base, as_run(codec, base.questions, made), sum(bool(g.trace) for g in made)))
    before = np.array([t for _, _, base, _, _ in parts for t in base.thinking], float)
    after = np.array([t for _, _, _, hinted, _ in parts for t in hinted.thinking], float)
    change = np.array([float(y) - x for _, _, b, h, _ in parts for x, y in zip(b.right, h.right, strict=True)])
    interval = paired_bootstrap(change)
    return {
        "shortening": float(1 - after.sum() / before.sum()) if before.sum() else 0.0,
        "delta_accuracy": interval.estimate,
        "delta_accuracy_ci": [interval.low, interval.high],
        "reached": sum(part[-1] for part in parts) / len(before),
        "levels": {
            name: {
                "at": at,
                "thinking": float(np.mean(b.thinking)),
                "hinted_thinking": float(np.mean(h.thinking)),
                "accuracy": float(np.mean(b.right)),
                "hinted_accuracy": float(np.mean(h.right)),
            }
            for name, at, b, h, _ in parts
        },
    }


def predictable(run: Run) -> dict[str, float]:
    """How well prompt length and kind alone foretell success: cross-validated AUROC of two unlike learners."""
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import PolynomialFeatures, StandardScaler

    success = np.array(run.right, int)
    if min(success.sum(), len(success) - success.sum()) < 5:
        return {}
    kinds = sorted({q.kind or "" for q in run.questions})
    one_hot = np.array([[float(q.kind == k) for k in kinds] for q in run.questions])
    length = np.array(run.prompts, float)[:, None]
    features = np.hstack([(length - length.mean()) / (length.std() + 1e-9), one_hot])
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    learners = {
        "logistic": make_pipeline(PolynomialFeatures(3), StandardScaler(), LogisticRegression(C=1.0, max_iter=2000)),
        "boosting": HistGradientBoostingClassifier(max_iter=60, max_leaf_nodes=8, learning_rate=0.08, random_state=0),
    }
    return {
        name: auroc(cross_val_predict(learner, features, success, cv=folds, method="predict_proba")[:, 1], success)
        for name, learner in learners.items()
    }
