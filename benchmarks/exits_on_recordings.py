"""What the parts of the rule `convergence` save and lose on recorded thinking, chosen and learnt on other models' only.

Each file of recorded outputs is a set, named MODEL__TASK.jsonl. Sets whose models' names begin alike are a family, and
those whose tasks' names begin alike a task, as in gsm8k and gsm8k_hard. Columns:

- `first`: stop where a value is first called the answer; `derivations`, `confirmations`, `row`: the parts of the rule,
  each with those before it, so that `row` is all of it. These have no parameters.
- `chosen`: whichever of them saves most on all sets of other families and other tasks, of those that lose at most
  --lost of the right answers there. It is what we would have shipped had we not seen the set.
- `learnt`: a logistic regression on what speaks for a claim, which scores every claim that a thinking states. It is
  fitted on other families and other tasks, and its threshold is the lowest that loses at most --lost there, by scores
  of fits that left the scored family out. `learnt_bound` has the best threshold in hindsight, one lost answer allowed.

Each has the share of thinking tokens saved, the right answers lost and the upper 95 % bound of their share.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from measuring import make_parser, print_figures
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from tersely.controller.budgets import Budget
from tersely.controller.policies.base import Policy, PolicyView, Wait, Watching
from tersely.controller.policies.exits import Convergence
from tersely.controller.replay import replay
from tersely.controller.text.answers import Finality, extract_answer
from tersely.controller.text.evidence import AnswerEvidence, Claim
from tersely.controller.text.markers import Markers
from tersely.controller.text.tokenizer_adapter import TokenizerAdapter, get_adapter
from tersely.errors import TerselyError
from tersely.evaluation.replay.formats import Fields, RecordedOutput
from tersely.evaluation.replay.logs import load_set
from tersely.evaluation.replay.reader import load_tokenizer
from tersely.evaluation.tasks.equality import AnswerChecker
from tersely.probes.stats import binomial_upper_bound

MARKERS = Markers("<think>", "</think>")
BUDGET = Budget("normal", 1 << 30)
RULE = Convergence()


@dataclass(frozen=True, slots=True)
class Candidate:
    """A place where the thinking could end, with the claim that it stated last."""

    tokens: int
    claim: Claim
    finality: Finality
    right: bool


@dataclass(frozen=True, slots=True)
class Row:
    """A recorded output: its set, its length, whether its answer is right, and its candidates in order."""

    number: int
    tokens: int
    right: bool
    candidates: list[Candidate]


class Listener(Policy):
    """Keeps what `convergence` reads at each place where it looks, and never acts."""

    __slots__ = ("found",)
    name: ClassVar[str] = "listener"

    def __init__(self) -> None:
        self.found: list[tuple[int, Claim, Finality]] = []

    def watch(self, view: PolicyView) -> Watching:
        """See `Policy.watch`."""
        evidence, read = AnswerEvidence(view.question), 0
        while not evidence.asked.open:
            yield Wait(at=view.tokens + 1, boundary="thought", sentence_at=view.tokens + RULE.stride)
            stated = evidence.read(view.thinking.text_from(min(read, view.tokens)))
            read = view.tokens
            if stated is not None:
                self.found.append((read, replace(stated[0]), stated[1]))


def follow(number: int, row: RecordedOutput, codec: TokenizerAdapter, checker: AnswerChecker) -> Row:
    """Read one recorded output."""
    ids, listener = codec.encode(row.thinking), Listener()
    replay(ids, (listener,), codec.tokenizer, MARKERS, BUDGET, prompt=row.question)
    recorded = extract_answer(row.answer, row.question)
    gold = recorded if row.gold is None else row.gold.rpartition("####")[2].strip()
    right = row.gold is None or checker.check(gold, recorded).equal
    candidates = [
        Candidate(tokens, claim, finality, checker.check(gold, claim.answer).equal)
        for tokens, claim, finality in listener.found
        if tokens < len(ids)
    ]
    return Row(number, len(ids), right, candidates)


# -- the parts of the rule ---------------------------------------------------------------------------------------------

Stops = Callable[[Candidate], bool]


def _support(claim: Claim) -> bool:
    return RULE.find_support(claim) is not None


RULES: dict[str, Stops] = {
    "first": lambda one: True,
    "derivations": lambda one: _support(replace(one.claim, contested=True)),
    "confirmations": lambda one: _support(replace(one.claim, agreeing=min(one.claim.agreeing, RULE.agree))),
    "row": lambda one: _support(one.claim),
}


def stop_by(rule: Stops, row: Row) -> Candidate | None:
    """Where a rule would end the thinking."""
    return next((one for one in row.candidates if one.finality is Finality.ANSWERS and rule(one)), None)


def summarize(rows: Sequence[Row], stops: Sequence[Candidate | None]) -> dict[str, Any]:
    """What stopping there saves and loses."""
    used = sum(row.tokens if stop is None else stop.tokens for row, stop in zip(rows, stops, strict=True))
    lost = sum(row.right and stop is not None and not stop.right for row, stop in zip(rows, stops, strict=True))
    right = sum(row.right for row in rows)
    return {
        "saved": round(1 - used / sum(row.tokens for row in rows), 4),
        "lost": lost,
        "right": right,
        "lost_upper": round(binomial_upper_bound(lost, right, 0.05), 4) if right else 1.0,
    }


# -- the learnt score --------------------------------------------------------------------------------------------------


def describe(one: Candidate) -> list[float]:
    """Features of a candidate: what speaks for the claim, and nothing of its value or the task."""
    claim = one.claim
    counts = (claim.derivations, claim.confirmed, claim.answered, claim.agreeing, claim.insisting, claim.at + 1)
    levels = [float(one.finality is level) for level in Finality]
    return [*np.log1p(counts), *levels, float(claim.contested), np.log(one.tokens), float(claim.answered == 0)]


class Learner:
    """All candidates as columns, so that models can be fitted and thresholds tried fast."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = rows
        self.owner = np.repeat(np.arange(len(rows)), [len(row.candidates) for row in rows])
        candidates = [one for row in rows for one in row.candidates]
        self.candidates = candidates
        self.features = np.array([describe(one) for one in candidates])
        self.right = np.array([one.right for one in candidates])
        self.number = np.array([rows[i].number for i in self.owner.tolist()])
        self.weights = 1 / np.bincount(self.owner)[self.owner]

    def score(self, fit: NDArray[np.bool_], test: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Scores of some candidates by a model that is fitted on others; -1 for the rest."""
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=500))
        model.fit(self.features[fit], self.right[fit], logisticregression__sample_weight=self.weights[fit])
        scores = np.full(len(self.features), -1.0)
        scores[test] = model.predict_proba(self.features[test])[:, 1]
        return scores

    def stops(self, scores: NDArray[np.float64], threshold: float) -> list[Candidate | None]:
        """The first candidate of each row that reaches the threshold."""
        stops: list[Candidate | None] = [None] * len(self.rows)
        for at in np.flatnonzero(scores >= threshold)[::-1]:
            stops[self.owner[at]] = self.candidates[at]
        return stops

    def choose(self, scores: NDArray[np.float64], numbers: Sequence[int], allowed: Callable[[int], float]) -> float:
        """The lowest threshold up from which these sets lose no more than is allowed of so many right answers."""
        chosen = 2.0
        for threshold in np.quantile(scores[scores >= 0], np.linspace(0.999, 0.05, 150)):
            found = [
                (row, stop)
                for row, stop in zip(self.rows, self.stops(scores, threshold), strict=True)
                if row.number in numbers
            ]
            figures = summarize(*zip(*found, strict=True))  # type: ignore[arg-type]
            if figures["lost"] > allowed(figures["right"]):
                break
            chosen = float(threshold)
        return chosen


@dataclass(frozen=True, slots=True)
class Kind:
    """The family of models and the family of tasks of a set."""

    model: str
    task: str

    @classmethod
    def of(cls, name: str) -> Kind:
        """By the letters that the parts of a name begin with."""
        model, _, task = name.lower().partition("__")
        return cls(re.split(r"[-.]", model)[0], re.match(r"[a-z]*", task)[0])  # type: ignore[index]


def judge(names: Sequence[str], rows: Sequence[Row], lost: float) -> list[dict[str, Any]]:
    """The figures of each set."""
    kinds = [Kind.of(name) for name in names]
    figures: list[dict[str, Any]] = [
        {"set": name, "n": sum(r.number == i for r in rows)} for i, name in enumerate(names)
    ]
    for rule, stops in RULES.items():
        for number, one in enumerate(figures):
            mine = [row for row in rows if row.number == number]
            one[rule] = summarize(mine, [stop_by(stops, row) for row in mine])
    learner = Learner(rows)
    for kind in dict.fromkeys(kinds):
        test = [i for i, other in enumerate(kinds) if other == kind]
        fit = [i for i, other in enumerate(kinds) if other.model != kind.model and other.task != kind.task]
        _choose_and_learn(figures, kinds, learner, test, fit, lost)
    return figures


def _choose_and_learn(
    figures: list[dict[str, Any]], kinds: Sequence[Kind], learner: Learner, test: list[int], fit: list[int], lost: float
) -> None:
    """Add what was chosen and learnt on the sets `fit` to the figures of the sets `test`."""
    rules = [
        (np.mean([figures[i][rule]["saved"] for i in fit]), rule)
        for rule in RULES
        if sum(figures[i][rule]["lost"] for i in fit) <= lost * sum(figures[i][rule]["right"] for i in fit)
    ]
    scores = learner.score(np.isin(learner.number, fit), np.isin(learner.number, test))
    held = np.full(len(scores), -1.0)
    for model in {kinds[i].model for i in fit}:
        rest = [i for i in fit if kinds[i].model != model]
        part = np.isin(learner.number, [i for i in fit if kinds[i].model == model])
        if rest and part.any():
            held = np.maximum(held, learner.score(np.isin(learner.number, rest), part))
    threshold = learner.choose(held, fit, lambda right: lost * right)
    for number in test:
        rule = max(rules)[1] if rules else None
        figures[number]["chosen"] = None if rule is None else {"rule": rule, **figures[number][rule]}
        bound = learner.choose(np.where(learner.number == number, scores, -1), [number], lambda r: max(1, lost * r))
        mine = [row.number == number for row in learner.rows]
        for name, at in (("learnt", threshold), ("learnt_bound", bound)):
            pairs = zip(learner.rows, learner.stops(scores, at), mine, strict=True)
            kept = [(row, stop) for row, stop, keep in pairs if keep]
            figures[number][name] = summarize([row for row, _ in kept], [stop for _, stop in kept])


def main(argv: list[str] | None = None) -> None:
    """Read the sets and print their figures."""
    parser = make_parser(__doc__)
    parser.add_argument("logs", nargs="+", type=Path, help="files named MODEL__TASK.jsonl; two families at least")
    parser.add_argument(
        "--tokenizer", type=Path, help="a tokenizer.json or its folder; by default a simple one of ours"
    )
    parser.add_argument("--lost", type=float, default=0.01, help="share that may be lost elsewhere (default 0.01)")
    parser.add_argument("--limit", type=int, help="outputs per file")
    options = parser.parse_args(argv)
    codec = get_adapter(load_tokenizer(options.tokenizer))
    rows: list[Row] = []
    with AnswerChecker() as checker:
        for number, path in enumerate(options.logs):
            for row in load_set(path, path.stem, Fields(), options.limit).rows:
                rows.append(follow(number, row, codec, checker))
            print(f"read {path.stem}", file=sys.stderr)
    figures = judge([path.stem for path in options.logs], rows, options.lost)
    print_figures({"sets": figures} if options.json else {one.pop("set"): one for one in figures}, options.json)


if __name__ == "__main__":
    try:
        main()
    except TerselyError as error:
        sys.exit(str(error))
