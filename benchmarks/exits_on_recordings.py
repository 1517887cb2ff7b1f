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
- `row_or_learnt`: where the rule or the score would stop; `row_and_learnt`: the rule, but where the score is among the
  lowest tenth of those at which it stops elsewhere; `first_if_learnt`: the rule, and where a value is first called the
  answer and the score is higher than nine of ten elsewhere at which the full thinking is right and that value is not.

Each has the share of thinking tokens saved, the right answers lost and the upper 95 % bound of their share. `all` has
the mean saving of the sets, 95 % intervals of what is saved and lost more than by `row`, and how many first answers
that are wrong did not end the thinking (`prevented`) and how many right ones did (`kept`). `auc` tells how well scores
tell right claims from wrong ones, the mean of the sets, and `first_auc` the same of first answers.

With --reader, a small model reads along: of each file the first outputs until that makes --read tokens, no more than
--cut tokens of each, and of the others those whose first answer only is wrong, up to there, which are learnt from but
not counted elsewhere. Then there is also what is learnt on its hidden states (`learnt_states`) and on both.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from exit_scores import Candidate, Companion, Learner, Row, Scores, compare, count_first, measure, summarize
from measuring import make_parser, print_figures
from numpy.typing import NDArray

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

MARKERS = Markers("<think>", "</think>")
BUDGET = Budget("normal", 1 << 30)
RULE = Convergence()
PREVENTED = 0.9  # share of wrong first answers elsewhere that are scored too low to stop at
VETOED = 0.1  # share of the rule's stops elsewhere that a low score would have prevented


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
    return Row(number, len(ids), right, candidates, np.zeros((len(candidates), 0), np.float16))


def read_along(
    reader: Companion, name: str, row: Row, output: RecordedOutput, codec: TokenizerAdapter, most: int
) -> Row:
    """The same with the states of a small model, and without what comes after so many tokens."""
    candidates = [one for one in row.candidates if one.tokens <= most]
    if not candidates:
        return replace(row, candidates=[], states=row.states[:0])
    ids = codec.encode(output.thinking)
    texts = [codec.decode(ids[: one.tokens]) for one in candidates]
    states = reader.read(name, output.question, texts)
    read = np.flatnonzero(np.isfinite(states).all(axis=1))
    return replace(row, candidates=[candidates[i] for i in read], states=states[read])


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

    def is_apart(self, other: Kind, apart: str) -> bool:
        """Whether another set differs in what is kept apart: its model, its task, or both."""
        return (apart == "task" or self.model != other.model) and (apart == "model" or self.task != other.task)


def judge(names: Sequence[str], rows: Sequence[Row], lost: float, apart: str) -> dict[str, Any]:
    """The figures of each set, and of all together."""
    kinds, learner = [Kind.of(name) for name in names], Learner(rows)
    columns: dict[str, list[Candidate | None]] = {
        name: [stop_by(rule, row) for row in rows] for name, rule in RULES.items()
    }
    scores = {part: np.full(len(learner.right), -1.0) for part in learner.features}
    chosen: dict[int, str | None] = {}
    groups = [kind.task if apart == "task" else kind.model for kind in kinds]
    elsewhere = [tuple(i for i, other in enumerate(kinds) if kind.is_apart(other, apart)) for kind in kinds]
    for fit in dict.fromkeys(elsewhere):
        test = [i for i, other in enumerate(elsewhere) if other == fit]
        chosen |= dict.fromkeys(test, choose_rule(rows, columns, fit, lost))
        for part, score in scores.items():
            for name, stops in learn(learner, part, groups, fit, test, lost, score).items():
                column = columns.setdefault(name, [None] * len(rows))
                for i in np.flatnonzero(np.isin([row.number for row in rows], test)).tolist():
                    column[i] = stops[i]
    figures: dict[str, Any] = {}
    for number, set_name in enumerate(names):
        mine = [i for i, row in enumerate(rows) if row.number == number and not row.extra]
        own = [rows[i] for i in mine]
        one = {name: summarize(own, [stops[i] for i in mine]) for name, stops in columns.items()}
        if (best := chosen[number]) is not None:
            one["chosen"] = {"rule": best, **one[best]}
        figures[set_name] = {"n": len(own), **one, "auc": learner.judge(scores, number)}
    aucs = [one["auc"] for one in figures.values() if one["auc"]]
    sample = [i for i, row in enumerate(rows) if not row.extra]
    own, rule_stops = [rows[i] for i in sample], [columns["row"][i] for i in sample]
    figures["all"] = {
        name: compare(own, [stops[i] for i in sample], rule_stops) | count_first(rows, stops, columns)
        for name, stops in columns.items()
    }
    early = [
        first if row.right and first is not rule else None
        for row, first, rule in zip(rows, columns["first"], columns["row"], strict=True)
    ]
    figures["all"]["first_auc"] = learner.judge_first(scores, early)
    figures["all"]["auc"] = {part: round(float(np.mean([auc[part] for auc in aucs])), 3) for part in scores if aucs}
    return figures


def choose_rule(
    rows: Sequence[Row], columns: Mapping[str, Sequence[Candidate | None]], fit: Sequence[int], lost: float
) -> str | None:
    """The part of the rule that saves most on these sets, of those that lose no more than is allowed."""
    mine = [i for i, row in enumerate(rows) if row.number in fit and not row.extra]
    own = [rows[i] for i in mine]
    found = {rule: compare(own, [columns[rule][i] for i in mine], [None] * len(own), 1) for rule in RULES}
    kept = {rule: one["saved"] for rule, one in found.items() if one["lost"] <= lost * one["right"]}
    return max(kept, key=lambda rule: kept[rule]) if kept else None


def learn(
    learner: Learner,
    part: str,
    groups: Sequence[str],
    fit: Sequence[int],
    test: Sequence[int],
    lost: float,
    scores: Scores,
) -> dict[str, list[Candidate | None]]:
    """The stops of the sets `test` by what is learnt on the sets `fit`; their scores are filled in."""
    rule = np.array([one.finality is Finality.ANSWERS and RULES["row"](one) for one in learner.candidates], bool)
    mine, known = np.isin(learner.number, test), np.isin(learner.number, fit)
    scores[mine] = learner.score(part, known, mine)[mine]
    held = np.full(len(scores), -1.0)
    for group in {groups[i] for i in fit}:
        out = np.isin(learner.number, [i for i in fit if groups[i] == group])
        if out.any() and (known & ~out).any():
            held[out] = learner.score(part, known & ~out, out)[out]
    alone = learner.choose(held, rule & False, fit, lambda right: lost * right)
    _, harmed = measure(learner.rows, learner.stops(rule & known))
    losses = harmed[[not row.extra for row in learner.rows]].sum()
    with_rule = learner.choose(held, rule, fit, lambda right: max(lost * right, losses))
    called = np.array([one.finality is Finality.ANSWERS for one in learner.candidates], bool)
    opening = {id(one) for one in learner.stops(called & known)}
    opens = np.array([id(one) in opening for one in learner.candidates])
    wrong = opens & ~rule & ~learner.right & np.array([learner.rows[i].right for i in learner.owner.tolist()])
    sure = np.quantile(held[wrong], PREVENTED) if wrong.any() else 2.0
    stopped = rule & known & (held >= 0)
    low = np.quantile(held[stopped], VETOED) if stopped.any() else 0.0
    bound = [
        learner.choose(np.where(learner.number == i, scores, -1), rule & False, [i], lambda r: max(1, lost * r))
        for i in test
    ]
    name = {"text": "learnt"}.get(part, f"learnt_{part}")
    return {
        name: learner.stops(scores >= alone),
        f"{name}_bound": learner.stops(scores >= np.array([*bound, 2.0])[_places(learner.number, test)]),
        f"row_or_{name}": learner.stops(rule | (scores >= with_rule)),
        f"first_if_{name}": learner.stops(rule | called & (scores > sure)),
        f"row_and_{name}": learner.stops(rule & (scores >= low)),
    }


def _places(numbers: NDArray[np.int64], test: Sequence[int]) -> list[int]:
    """The place of each number in `test`, -1 where it is not there."""
    return [test.index(number) if number in test else -1 for number in numbers.tolist()]


def main(argv: list[str] | None = None) -> None:
    """Read the sets and print their figures."""
    parser = make_parser(__doc__)
    parser.add_argument("logs", nargs="+", type=Path, help="files named MODEL__TASK.jsonl; two families at least")
    parser.add_argument(
        "--tokenizer", type=Path, help="a tokenizer.json or its folder; by default a simple one of ours"
    )
    parser.add_argument("--lost", type=float, default=0.01, help="share that may be lost elsewhere (default 0.01)")
    parser.add_argument("--limit", type=int, help="outputs per file")
    parser.add_argument("--apart", choices=("both", "model", "task"), default="both", help="what differs elsewhere")
    parser.add_argument("--reader", help="a small model that reads along: a name or folder")
    parser.add_argument("--states", type=Path, help="folder in which its states are kept")
    parser.add_argument("--read", type=int, default=20000, help="tokens that it reads of each file (default 20000)")
    parser.add_argument("--cut", type=int, default=4000, help="tokens that it reads of each output (default 4000)")
    options = parser.parse_args(argv)
    codec = get_adapter(load_tokenizer(options.tokenizer))
    reader = None if options.reader is None else Companion(options.reader, options.states)
    rows: list[Row] = []
    with AnswerChecker() as checker:
        for number, path in enumerate(options.logs):
            read = 0
            for at, output in enumerate(load_set(path, path.stem, Fields(), options.limit).rows):
                row = follow(number, output, codec, checker)
                if reader is not None:
                    first, most = stop_by(RULES["first"], row), options.cut
                    if read >= options.read:
                        if not row.right or first is None or first.right or first.tokens > most:
                            continue
                        row, most = replace(row, extra=True), first.tokens
                    row = read_along(reader, f"{path.stem}-{at}", row, output, codec, most)
                    read += max((one.tokens for one in row.candidates), default=0)
                rows.append(row)
            print(f"read {path.stem}", file=sys.stderr)
    figures = judge([path.stem for path in options.logs], rows, options.lost, options.apart)
    print_figures(figures, options.json)


if __name__ == "__main__":
    try:
        main()
    except TerselyError as error:
        sys.exit(str(error))
