"""Acceptance check of the embedded models, and the text of docs/MODEL_CARD.md.

    python benchmarks/acceptance.py MODEL_DIR... --n 1200 --seed S

It measures what thinking is worth, per level and effort, on fresh problems. With two models, the small one first, the
criteria of the pair are checked too.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import typer

from tersely.controller.options import GenerationOptions
from tersely.controller.policies.base import Inject, Policy, PolicyView, Wait, Watching
from tersely.controller.text.answers import extract_answer, extract_stated_answer, normalize_answer
from tersely.controller.text.tokenizer_adapter import TokenizerAdapter
from tersely.controller.trace import GenerationResult
from tersely.controller.types import SamplingParams
from tersely.errors import TerselyError
from tersely.evaluation.cli_utils import BatchSize, Engine, Json, format_table, show_progress
from tersely.evaluation.runner import ENGINES, load_runner, tokens_until
from tersely.evaluation.stats import paired_bootstrap
from tersely.evaluation.tasks.questions import TINY, Question, load
from tersely.evaluation.tasks.toy_programs import HARD_HALF, LEVELS
from tersely.probes.stats import auroc

MODES = ("none", "easy", "normal", "hard")
GREEDY = "normal (greedy)"
HINT_AT = 0.3
MAX_NEW_TOKENS = 1536
PREDICTION_FACTOR = 4
"""How many times as many problems are used to predict success, because mistakes are few."""
_OPTIONS = GenerationOptions(preset="off", max_new_tokens=MAX_NEW_TOKENS)

_LINE = re.compile(r"[^\n]+")
_VERDICT = re.compile(r"\bNow (\d+), before (\d+): (?:the )?(same|different)\b")

Answer = Callable[[Sequence[Question], GenerationOptions], list[GenerationResult]]
"""Answers questions under options, in order: the model under test."""
Card = dict[str, Any]
"""The measurements of one model."""


# -- reading generations -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class StatedLine:
    """An answer stated in the thinking; `end` is the end of its line, in thinking tokens."""

    answer: str
    end: int


@dataclass(frozen=True, slots=True)
class TraceReading:
    """One analysed generation: its normalized final answer ("" for none) and its tokens of thinking.

    `verdicts` say, for each re-check in the embedded models' form, whether it fits the two numbers that it names.
    """

    final: str
    tokens: int
    statements: tuple[StatedLine, ...] = ()
    verdicts: tuple[bool, ...] = ()

    @property
    def first(self) -> str:
        """The first stated answer; the final one if the thinking states none."""
        return self.statements[0].answer if self.statements else self.final

    @property
    def after(self) -> int:
        """Thinking tokens after the answer last changed: after the final one was stated for good."""
        at = self.tokens
        for statement in reversed(self.statements):
            if statement.answer != self.final:
                break
            at = statement.end
        return self.tokens - at

    def changes(self, gold: str) -> tuple[int, int]:
        """How often a statement corrected a wrong answer, and how often it broke a right one."""
        right = [s.answer == gold for s in self.statements]
        pairs = list(pairwise(right))
        return pairs.count((False, True)), pairs.count((True, False))


def read(generation: GenerationResult, codec: TokenizerAdapter) -> TraceReading:
    """Analyse one generation."""
    tokens = generation.usage.thinking
    ids = generation.token_ids[:tokens]
    text = codec.decode(ids)
    stated = [(extract_stated_answer(line.group()), line.end()) for line in _LINE.finditer(text)]
    statements = [StatedLine(answer, tokens_until(ids, codec, end)) for answer, end in stated if answer is not None]
    verdicts = [(now == before) == (word == "same") for now, before, word in _VERDICT.findall(text)]
    return TraceReading(normalize_answer(extract_answer(generation.answer)), tokens, tuple(statements), tuple(verdicts))


# -- measurements ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class HintOnce(Policy):
    """A policy that injects one hint at the first sentence end after `at` thinking tokens."""

    name: ClassVar[str] = "hint once"
    at: int
    text: str = "[Be concise.]"

    def watch(self, view: PolicyView) -> Watching:
        """See `Policy.watch`."""
        yield Wait(at=self.at, boundary="sentence")
        yield Inject(self.text, f"once, after {self.at} thinking tokens")


@dataclass(frozen=True, slots=True)
class Sample:
    """One generation of a question, analysed."""

    question: Question
    reading: TraceReading
    prompt_tokens: int
    capped: bool
    hinted: bool = False

    @property
    def right(self) -> bool:
        """Whether the final answer is the gold one."""
        return self.reading.final == self.question.answer

    @property
    def first_right(self) -> bool:
        """Whether the first stated answer is the gold one."""
        return self.reading.first == self.question.answer


def measure(
    answer: Answer,
    codec: TokenizerAdapter,
    questions: Sequence[Question],
    more: Sequence[Question] = (),
    *,
    greedy: bool,
) -> dict[str, Any]:
    """All measurements of a model; `greedy` makes every mode greedy, otherwise greedy decoding is an extra mode.

    `more` are further questions, used only to predict success from prompt length and kind.
    """

    def run(questions: Sequence[Question], options: GenerationOptions) -> list[Sample]:
        return [
            Sample(question, read(done, codec), done.usage.prompt, done.finish_reason == "length", bool(done.trace))
            for question, done in zip(questions, answer(questions, options), strict=True)
        ]

    cold = replace(_OPTIONS, sampling=SamplingParams(temperature=0.0))
    options = cold if greedy else _OPTIONS
    runs = {mode: run(questions, replace(options, effort=mode)) for mode in MODES}
    if not greedy:
        runs[GREEDY] = run(questions, cold)
    predicted = [*runs["normal"], *(run(more, replace(options, effort="normal")) if more else ())]
    return {
        "sampling": "greedy" if greedy else "the model's own",
        "modes": {mode: by_level(samples) for mode, samples in runs.items()},
        "hint": measure_hint(run, runs["normal"], options),
        "predicted": {"n": len(predicted), "wrong": sum(not s.right for s in predicted)},
        "auroc": predict_success(predicted),
    }


def by_level(samples: Sequence[Sample]) -> dict[str, dict[str, float]]:
    """Figures of each level, of the hard half and of all."""
    groups = {str(level): [s for s in samples if s.question.level == level] for level in LEVELS}
    groups["hard half"] = [s for s in samples if s.question.level in HARD_HALF]
    groups["all"] = list(samples)
    return {name: summarize(group) for name, group in groups.items() if group}


def summarize(samples: Sequence[Sample]) -> dict[str, float]:
    """Counts, and shares of 1, of some generations."""
    n = len(samples)
    changes = [s.reading.changes(s.question.answer) for s in samples]
    tokens = sum(s.reading.tokens for s in samples)
    verdicts = [v for s in samples for v in s.reading.verdicts]
    return {
        "n": n,
        "accuracy": sum(s.right for s in samples) / n,
        "first_accuracy": sum(s.first_right for s in samples) / n,
        "thinking": tokens / n,
        "after_share": sum(s.reading.after for s in samples) / tokens if tokens else 0.0,
        "repaired": sum(s.right and not s.first_right for s in samples),
        "spoilt": sum(s.first_right and not s.right for s in samples),
        "rechecks": len(verdicts) / n,
        "honest_verdicts": sum(verdicts) / len(verdicts) if verdicts else 1.0,
        "helped": sum(fixed for fixed, _ in changes),
        "harmed": sum(broken for _, broken in changes),
        "capped": sum(s.capped for s in samples) / n,
    }


def measure_hint(
    run: Callable[[Sequence[Question], GenerationOptions], list[Sample]],
    plain: Sequence[Sample],
    options: GenerationOptions,
) -> dict[str, Any]:
    """The effect of one hint at about 30 % of a level's typical thinking on the same problems."""
    pairs: list[tuple[Sample, Sample]] = []
    levels = {}
    for level in LEVELS:
        base = [s for s in plain if s.question.level == level]
        if not base:
            continue
        thinking = [s.reading.tokens for s in base]
        at = max(1, round(HINT_AT * float(np.median(thinking))))
        hinted = run([s.question for s in base], replace(options, policies=(HintOnce(at),)))
        levels[str(level)] = {
            "at": at,
            "thinking": float(np.mean(thinking)),
            "hinted_thinking": float(np.mean([s.reading.tokens for s in hinted])),
            "accuracy": float(np.mean([s.right for s in base])),
            "hinted_accuracy": float(np.mean([s.right for s in hinted])),
        }
        pairs += zip(base, hinted, strict=True)
    tokens, hinted_tokens = (sum(s.reading.tokens for s in samples) for samples in zip(*pairs, strict=True))
    change = paired_bootstrap([float(after.right) - before.right for before, after in pairs])
    return {
        "shortening": 1 - hinted_tokens / tokens if tokens else 0.0,
        "delta_accuracy": change.estimate,
        "delta_accuracy_ci": [change.low, change.high],
        "reached": sum(after.hinted for _, after in pairs) / len(pairs),
        "levels": levels,
    }


def predict_success(samples: Sequence[Sample]) -> dict[str, float]:
    """How well prompt length and kind alone predict success: cross-validated AUROC of two different classifiers."""
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import PolynomialFeatures, StandardScaler

    success = np.array([s.right for s in samples], int)
    if min(success.sum(), len(success) - success.sum()) < 5:
        return {}
    kinds = sorted({s.question.kind or "" for s in samples})
    one_hot = np.array([[float(s.question.kind == kind) for kind in kinds] for s in samples])
    length = np.array([s.prompt_tokens for s in samples], float)[:, None]
    features = np.hstack([(length - length.mean()) / (length.std() + 1e-9), one_hot])
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    classifiers = {
        "logistic": make_pipeline(PolynomialFeatures(3), StandardScaler(), LogisticRegression(C=1.0, max_iter=2000)),
        "boosting": HistGradientBoostingClassifier(max_iter=60, max_leaf_nodes=8, learning_rate=0.08, random_state=0),
    }
    return {
        name: auroc(success, cross_val_predict(classifier, features, success, cv=folds, method="predict_proba")[:, 1])
        for name, classifier in classifiers.items()
    }


# -- criteria ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Criterion:
    """One requirement: a measured value, and its lower (or upper) limit."""

    model: str
    what: str
    value: float
    limit: float
    at_least: bool = True

    @property
    def passed(self) -> bool:
        """Whether the value is within the limit; NaN is not."""
        return self.value >= self.limit if self.at_least else self.value <= self.limit

    def __str__(self) -> str:
        sign, word = ">=" if self.at_least else "<=", "pass" if self.passed else "FAIL"
        return f"{word}  {self.model:7} {self.what}: {self.value:.3f} (criterion {sign} {self.limit:g})"


def check_criteria(small: Card, large: Card) -> list[Criterion]:
    """All criteria of the pair."""
    better, worse = (card["modes"]["normal"]["hard half"]["accuracy"] for card in (large, small))
    pair = Criterion("pair", "accuracy of large above small, hard half", better - worse, 0.15)
    return [pair, *model_criteria("small", small), *model_criteria("large", large)]


def model_criteria(name: str, card: Card) -> list[Criterion]:
    """The criteria of a single model."""
    modes = card["modes"]
    normal, hard, easy = (modes[mode]["hard half"] for mode in ("normal", "hard", "easy"))
    repairs = normal["repaired"] / max(1, normal["spoilt"])
    gain, repair_gain = hard["accuracy"] - easy["accuracy"], normal["accuracy"] - normal["first_accuracy"]
    predicted = max(card["auroc"].values(), default=float("nan"))
    return [
        Criterion(name, "accuracy of hard mode above easy mode, hard half", gain, 0.05),
        Criterion(name, "final accuracy above first stated, hard half", repair_gain, 0.03),
        Criterion(name, "repaired per spoilt answer, hard half", repairs, 3.0),
        Criterion(name, "accuracy without thinking, level 1", modes["none"]["1"]["accuracy"], 0.70),
        Criterion(name, "accuracy without thinking, level 6", modes["none"]["6"]["accuracy"], 0.10, at_least=False),
        Criterion(name, "share of thinking after the answer last changed", modes["normal"]["all"]["after_share"], 0.35),
        Criterion(name, "shortening by a hint in mid-thought", card["hint"]["shortening"], 0.25),
        Criterion(name, "AUROC of length and kind alone", predicted, 0.75, at_least=False),
    ]


# -- command -----------------------------------------------------------------------------------------------------------

_COLUMNS = {
    "thinking": "thinking tokens",
    "after_share": "after last change",
    "first_accuracy": "first stated",
    "rechecks": "re-checks",
    "capped": "cut off",
}
_SHARES = ("accuracy", "after_share", "first_accuracy", "honest_verdicts", "capped", "hinted_accuracy")


def make_card(model: str, n: int, seed: int, *, engine: str, batch_size: int, greedy: bool) -> Card:
    """Measure one model on `n` fresh test problems."""
    from measuring import answer_all  # importable in a script only

    questions = load(TINY, "test", PREDICTION_FACTOR * n, seed)
    runner = load_runner(model, engine)
    started = time.monotonic()
    total = n * (len(MODES) + (not greedy) + PREDICTION_FACTOR)  # all modes, the hint, and the further questions
    with show_progress(total) as advance:

        def answer(questions: Sequence[Question], options: GenerationOptions) -> list[GenerationResult]:
            report = lambda rows: advance(options.effort, rows)  # noqa: E731
            return answer_all(runner, questions, options, seed=seed, size=batch_size, advance=report)

        card = measure(answer, runner.session.codec, questions[:n], questions[n:], greedy=greedy)
    return {"model": Path(model).name, "n": n, "seed": seed, **card, "seconds": time.monotonic() - started}


def as_text(card: Card) -> str:
    """The card as aligned text."""
    lines = [f"## {card['model']}", "", f"{card['n']} problems, seed {card['seed']}, sampling: {card['sampling']}.", ""]
    for mode, groups in card["modes"].items():
        lines += [f"### {mode}", "", _format_groups(groups), ""]
    hint = card["hint"]
    low, high = hint["delta_accuracy_ci"]
    aurocs = ", ".join(f"{name} {value:.3f}" for name, value in card["auroc"].items())
    lines += [
        "### a hint in mid-thought",
        "",
        f"Thinking shorter by {hint['shortening']:.1%}, accuracy {hint['delta_accuracy']:+.1%} "
        f"(95% CI {low:+.1%} to {high:+.1%}); the hint was reached by {hint['reached']:.1%}.",
        "",
        _format_groups(hint["levels"]),
        "",
        "### success predicted from prompt length and kind alone",
        "",
        f"AUROC over {card['predicted']['n']} problems, {card['predicted']['wrong']} of them wrong: {aurocs}.",
        "",
    ]
    return "\n".join(lines)


def _format_groups(groups: dict[str, dict[str, float]]) -> str:
    """A table of groups of problems; shares are in percent."""
    keys = [key for key in next(iter(groups.values())) if key != "n"]
    header = ["level", *(_COLUMNS.get(key, key.replace("_", " ")) for key in keys)]
    rows = []
    for name, values in groups.items():
        cells = [
            f"{value:.1%}" if key in _SHARES else str(value) if isinstance(value, int) else f"{value:.1f}"
            for key, value in values.items()
            if key != "n"
        ]
        rows.append([name, *cells])
    return format_table(header, rows, first=">")


def check_models(
    models: Annotated[list[str], typer.Argument(help="Model folders; of a pair, the small one first.")],
    n: Annotated[int, typer.Option(help="Number of fresh problems of the test split.")] = 1200,
    seed: Annotated[int, typer.Option(help="Seed for problems and sampling.")] = 0,
    engine: Engine = ENGINES[0],
    batch_size: BatchSize = 256,
    greedy: Annotated[bool, typer.Option(help="Decode greedily instead of with the model's own settings.")] = False,
    as_json: Json = False,
) -> None:
    """Measure embedded models and check their acceptance criteria; exit code 1 if one is missed."""
    cards = [make_card(model, n, seed, engine=engine, batch_size=batch_size, greedy=greedy) for model in models]
    if len(cards) == 2:
        criteria = check_criteria(*cards)
    else:
        criteria = [criterion for card in cards for criterion in model_criteria(card["model"], card)]
    if as_json:
        checked = [{**asdict(criterion), "passed": criterion.passed} for criterion in criteria]
        typer.echo(json.dumps({"cards": cards, "criteria": checked}, indent=2))
    else:
        for card in cards:
            typer.echo(as_text(card))
        typer.echo("\n".join(map(str, criteria)))
    if not all(criterion.passed for criterion in criteria):
        raise typer.Exit(1)


if __name__ == "__main__":
    try:
        typer.run(check_models)
    except TerselyError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
