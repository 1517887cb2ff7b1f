"""What a training changed: a model before and after, both without control, on the same questions that neither has seen.

For each: accuracy, tokens, and how often it did not think, by level. `before-none` and `before-easy` are the model
before training, told not to think or to think briefly: a training has to beat what a prompt can do.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean

from tersely.controller.engines.transformers import load_engine
from tersely.controller.options import Options
from tersely.controller.trace import Generation
from tersely.evaluation.answering import SessionAnswers, answer_all
from tersely.evaluation.reading import final_answer
from tersely.evaluation.stats import paired_bootstrap
from tersely.evaluation.tasks.equality import AnswerChecker, right_answers
from tersely.evaluation.tasks.questions import Question, load


@dataclass(frozen=True, slots=True)
class Arm:
    """What one model did: for each question whether it was right, its tokens, and whether it did not think."""

    right: list[bool]
    tokens: list[int]
    instant: list[bool]

    def figures(self, places: Sequence[int]) -> dict[str, float]:
        """Means over some of the questions."""
        return {
            "right": fmean(self.right[i] for i in places),
            "tokens": fmean(self.tokens[i] for i in places),
            "no_think": fmean(self.instant[i] for i in places),
        }


def arm(
    model: str, effort: str, questions: Sequence[Question], seed: int, batch: int, limit: int, checker: AnswerChecker
) -> Arm:
    """Let a model answer all questions."""
    answerer = SessionAnswers(load_engine(model))
    options = Options(effort=effort, preset="off", max_new_tokens=limit)
    made: list[Generation] = answer_all(answerer, questions, options, seed=seed, size=batch)
    answers = [(question, final_answer(one)) for question, one in zip(questions, made, strict=True)]
    return Arm(
        right_answers(answers, checker),
        [one.usage.total for one in made],
        [not one.thinking.strip() for one in made],
    )


def main(argv: list[str] | None = None) -> None:
    """Answer, compare and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", default="tersely-tiny-small", help="name or folder (default: %(default)s)")
    parser.add_argument("--after", required=True, help="the folder `model` that a training wrote")
    parser.add_argument("--task", default="tiny", help="tiny, gym:NAME or a JSONL file (default: %(default)s)")
    parser.add_argument("--limit", type=int, default=600, help="questions of the split test (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of questions and samples (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=96, help="questions decoded at a time (default: %(default)s)")
    parser.add_argument("--max-new-tokens", type=int, default=1024, help="of an answer (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(argv)

    questions = load(options.task, "test", options.limit, options.seed)
    arms: dict[str, Arm] = {}
    with AnswerChecker() as checker:
        for name, model, effort in (
            ("before", options.before, "normal"),
            ("before-easy", options.before, "easy"),
            ("before-none", options.before, "none"),
            ("after", options.after, "normal"),
        ):
            shared = (questions, options.seed, options.batch, options.max_new_tokens, checker)
            arms[name] = arm(model, effort, *shared)
            print(name, arms[name].figures(range(len(questions))), file=sys.stderr, flush=True)
    levels = sorted({question.level for question in questions if question.level is not None})
    places = {"all": list(range(len(questions)))} | {
        str(level): [i for i, question in enumerate(questions) if question.level == level] for level in levels
    }
    before, after = arms["before"], arms["after"]
    change = paired_bootstrap([float(b) - float(a) for a, b in zip(before.right, after.right, strict=True)])
    saved = 1 - sum(after.tokens) / sum(before.tokens)
    if options.json:
        print(
            json.dumps(
                {
                    "arms": {name: {key: one.figures(at) for key, at in places.items()} for name, one in arms.items()},
                    "accuracy_change": asdict(change),
                    "tokens_saved": saved,
                    "questions": len(questions),
                }
            )
        )
        return
    print(f"{'':12}{'level':>6}{'right':>8}{'tokens':>9}{'no-think':>10}")
    for name, one in arms.items():
        for key, at in places.items():
            found = one.figures(at)
            print(f"{name:12}{key:>6}{found['right']:8.1%}{found['tokens']:9.1f}{found['no_think']:10.1%}")
    points = [100 * value for value in (change.estimate, change.low, change.high)]
    print(f"{saved:.1%} of tokens saved, accuracy {points[0]:+.1f} points [{points[1]:+.1f}, {points[2]:+.1f}]")


if __name__ == "__main__":
    main()
