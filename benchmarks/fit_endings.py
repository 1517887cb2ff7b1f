"""Learns the weights of `controller/text/endings.py`, and shows how well they read what they were not learnt from.

Learnt from sentences with and without an answer (--sentences, JSON lines of question, text, answer), and from recorded
outputs whose answer is right: from the end of the thinking, and from places between two thoughts, where a value counts
as right if it is the final one. Rows are those of sentences, ends and places: read right, as another answer, not at
all, and read although there is no answer; each by weights that were learnt without that fifth of the sentences and
without the files of that model. Prints the weights of all of them as Python.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from measuring import make_parser, print_figures
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.sparse import csr_matrix

from tersely.controller.text.answers import extract_answer, find_last_statement
from tersely.controller.text.endings import find_candidates
from tersely.controller.text.questions import read_question
from tersely.controller.text.values import answers_equal
from tersely.evaluation.replay.formats import Fields
from tersely.evaluation.replay.logs import load_set
from tersely.evaluation.tasks.equality import AnswerChecker

HERE = Path(__file__).resolve().parents[1] / "tests" / "unit" / "controller"
SENTENCES = [HERE / "stated_answers.jsonl", HERE / "learned_answers.jsonl"]
SHARE = {"sentences": 10.0, "ends": 1.0, "places": 0.4}
RAREST, STRENGTH = 8, 1.0
Scored = tuple[frozenset[str], bool]  # the marks of a candidate, and whether it is the answer


@dataclass(frozen=True, slots=True)
class Sample:
    """A text: its kind, the part of the data it belongs to, whether it has an answer, and what can be read."""

    kind: str
    part: int
    answered: bool
    candidates: list[Scored]


def read_sample(kind: str, part: int, text: str, question: str, answers: list[str], checker: AnswerChecker) -> Sample:
    """The candidates of a text; one without marks where it calls a value the answer, which is read in any case."""

    def is_right(value: str) -> bool:
        found = read_question(question).resolve(value) or ""
        return any(
            found.lower() == one.lower() or answers_equal(found, one) or checker.check(one, found).equal
            for one in answers
        )

    stated, final = find_last_statement(text, read_question(question))
    if final and stated is not None:
        return Sample(kind, part, bool(answers), [(frozenset(), is_right(stated[0]))])
    found = find_candidates(text, read_question(question), stated)
    return Sample(kind, part, bool(answers), [(marks, is_right(value)) for value, marks in found])


def read_samples(sentences: list[Path], logs: list[Path], limit: int, checker: AnswerChecker) -> list[Sample]:
    """All samples; of each log the ends of right outputs, and three places of the first `limit` of them."""
    random, samples = Random(0), []
    for line in chain.from_iterable(path.read_text("utf-8").splitlines() for path in sentences):
        row = json.loads(line)
        gold = [] if row["answer"] is None else [row["answer"]]
        samples.append(read_sample("sentences", random.randrange(5), row["text"], row["question"], gold, checker))
    models = sorted({path.stem.partition("__")[0] for path in logs})
    for path in logs:
        part, right = models.index(path.stem.partition("__")[0]) % 5, 0
        for row in load_set(path, path.stem, Fields(), None).rows:
            recorded = extract_answer(row.answer, row.question)
            if row.gold is None or not checker.check(row.gold, recorded).equal:
                continue
            right += 1
            thoughts = row.thinking.split("\n\n")
            texts = [("ends", row.thinking[-3_000:])]
            for end in random.sample(range(1, len(thoughts)), min(3, len(thoughts) - 1)) if right <= limit else ():
                texts.append(("places", "\n\n".join(thoughts[:end])[-2_500:]))
            for kind, text in texts:
                samples.append(read_sample(kind, part, text, row.question, [row.gold, recorded], checker))
    return samples


def fit(samples: list[Sample]) -> tuple[float, dict[str, float]]:
    """The bias and the weights of the marks that are not rare: a conditional logit.

    Each text chooses between its values and none of them, whose log-odds are 0.
    """
    texts = [sample for sample in samples if sample.candidates and sample.candidates[0][0]]
    scored = [(owner, *one) for owner, sample in enumerate(texts) for one in sample.candidates]
    counts = Counter(chain.from_iterable(marks for _, marks, _ in scored))
    columns = {mark: at for at, mark in enumerate(sorted(mark for mark in counts if counts[mark] >= RAREST))}
    cells = [(row, columns[mark]) for row, (_, marks, _) in enumerate(scored) for mark in marks if mark in columns]
    matrix = csr_matrix((np.ones(len(cells)), tuple(zip(*cells, strict=True))), shape=(len(scored), len(columns)))
    owner, right = np.array([one for one, *_ in scored]), np.array([one for *_, one in scored])
    share = np.array([SHARE[sample.kind] for sample in texts])
    none = np.array([not any(one for _, one in sample.candidates) for sample in texts])

    def loss(parameters: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        chances = np.exp(np.minimum(parameters[0] + matrix @ parameters[1:], 30))
        every = 1 + np.bincount(owner, chances, len(texts))
        meant = none + np.bincount(owner, chances * right, len(texts))
        slope = share[owner] * chances * (1 / every[owner] - right / meant[owner])
        value = share @ np.log(every / meant) + STRENGTH * parameters[1:] @ parameters[1:]
        return value, np.concatenate([[slope.sum()], matrix.T @ slope + 2 * STRENGTH * parameters[1:]])

    found = minimize(loss, np.zeros(len(columns) + 1), jac=True, method="L-BFGS-B", options={"maxiter": 1_000}).x
    learnt = dict(zip(columns, map(float, found[1:]), strict=True))
    return float(found[0]), {mark: round(w, 1) for mark, w in learnt.items() if abs(w) >= 0.05}


def judge(sample: Sample, bias: float, weights: dict[str, float], least: float) -> str:
    """How a text is read."""
    best, right = least, None
    for marks, correct in sample.candidates:
        odds = bias + sum(weights.get(mark, 0.0) for mark in marks) if marks else np.inf
        if odds > best:
            best, right = odds, correct
    if not sample.answered:
        return "no answer, read" if right is not None else "no answer, not read"
    return "not read" if right is None else "right" if right else "other"


def main() -> None:
    """Entry point."""
    parser = make_parser(__doc__)
    parser.add_argument("logs", type=Path, nargs="+", help="recorded outputs, MODEL__TASK.jsonl")
    parser.add_argument("--sentences", type=Path, nargs="+", default=SENTENCES)
    parser.add_argument("--limit", type=int, default=40, help="outputs of a log that are also read between thoughts")
    parser.add_argument("--least", type=float, default=0.0, help="log-odds above which a value is read")
    options = parser.parse_args()
    with AnswerChecker() as checker:
        samples = read_samples(options.sentences, options.logs, options.limit, checker)
    figures: dict[str, Any] = {kind: Counter() for kind in SHARE}
    for part in range(5):
        bias, weights = fit([sample for sample in samples if sample.part != part])
        for sample in samples:
            if sample.part == part:
                figures[sample.kind][judge(sample, bias, weights, options.least)] += 1
    print_figures({kind: dict(counts) for kind, counts in figures.items()}, options.json)
    bias, weights = fit(samples)
    print(f"_BIAS = {bias:.1f}\n_WEIGHTS = {json.dumps(dict(sorted(weights.items())))}")


if __name__ == "__main__":
    main()
