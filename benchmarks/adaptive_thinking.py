"""Compare a model before and after training runs, on the same held-out questions.

For each: accuracy, tokens, and how often it does not think, by level. `before-none` and `before-easy` are the model
before training, prompted not to think or to think briefly: training has to beat a prompt. No controller is used, except
as named by `--after FOLDER+PRESET`, such as `concise-t` for a learned hint. For runs with different seeds, `--after
FOLDER,FOLDER,FOLDER` also gives their mean, with intervals over questions.

With --cut, the model before training is also cut to the tokens of each run, by budget forcing (`NAME cut`) and by the
closing marker alone, as vLLM does (`NAME cut hard`); `changes` there compare the run with that. With --stated, all are
also asked with each of these numbers in the sentence of strategy `lcpo`: `kept` is the share of answers within it.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any, ClassVar

from measuring import answer_all, make_parser, print_figures

from tersely.controller.engines.transformers.engine import load_engine
from tersely.controller.options import GenerationOptions
from tersely.controller.policies import make_policies
from tersely.controller.policies.base import Close, Policy, PolicyView, Wait, Watching
from tersely.controller.text.answers import extract_answer
from tersely.controller.trace import GenerationResult
from tersely.evaluation.runner import SessionRunner
from tersely.evaluation.stats import paired_bootstrap, ratio_bootstrap
from tersely.evaluation.tasks.equality import AnswerChecker, right_answers
from tersely.evaluation.tasks.questions import Question, load

BEFORE = {"before": "normal", "before-easy": "easy", "before-none": "none"}
"""Arms of the model before training, and the effort of each."""


@dataclass(frozen=True, slots=True)
class Arm:
    """Results of one or several models: for each question accuracy, tokens, and whether thinking was skipped."""

    right: Sequence[float]
    tokens: Sequence[float]
    instant: Sequence[float]
    thinking: Sequence[float]  # tokens
    kept: Sequence[float]  # whether they were within a stated number of tokens

    @classmethod
    def mean(cls, arms: Sequence[Arm]) -> Arm:
        """The mean of several runs."""
        columns = [[getattr(one, part.name) for one in arms] for part in fields(cls)]
        return cls(*([fmean(at) for at in zip(*column, strict=True)] for column in columns))

    def means(self, indices: Sequence[int]) -> dict[str, float]:
        """Means over some of the questions."""
        return {
            "right": fmean(self.right[i] for i in indices),
            "tokens": fmean(self.tokens[i] for i in indices),
            "no_think": fmean(self.instant[i] for i in indices),
            "kept": fmean(self.kept[i] for i in indices),
        }

    def budget(self, tokens: float) -> int:
        """The thinking tokens at which cut answers take so many in all, if their answers stay as long."""
        lengths = list(zip(self.thinking, self.tokens, strict=True))
        total = tokens * len(lengths)
        most = int(max(self.thinking))  # which cuts nothing
        return next((n for n in range(1, most) if sum(all_ - max(0, own - n) for own, all_ in lengths) >= total), most)


class HardBudget(Policy):
    """Closes the thinking at the budget by the marker alone, as vLLM's `thinking_token_budget` does."""

    name: ClassVar[str] = "hard"

    def watch(self, view: PolicyView) -> Watching:
        yield Wait(at=view.budget.thinking - 1)
        yield Close("budget", phrase="")


def run_arm(
    model: str,
    questions: Sequence[Question],
    options: argparse.Namespace,
    checker: AnswerChecker,
    **given: Any,
) -> Arm:
    """Answer all questions with a model; `given` are further `GenerationOptions`."""
    runner = SessionRunner(load_engine(model))
    settings = GenerationOptions(**{"effort": "normal", "preset": "off"} | given, max_new_tokens=options.max_new_tokens)
    stated = settings.thinking_budget or math.inf
    results: list[GenerationResult] = answer_all(runner, questions, settings, seed=options.seed, size=options.batch)
    answers = [(question, extract_answer(result.answer)) for question, result in zip(questions, results, strict=True)]
    return Arm(
        right_answers(answers, checker),
        [result.usage.total for result in results],
        [not result.thinking.strip() for result in results],
        [result.usage.thinking for result in results],
        [result.usage.total <= stated for result in results],
    )


def run_arms(options: argparse.Namespace, questions: Sequence[Question]) -> dict[str, Arm]:
    """All arms by name; those of runs by their folder, and means by their folders."""
    trained = list(dict.fromkeys(folder for given in options.after for folder in given.split(",")))
    for given in trained:
        make_policies(given.partition("+")[2] or "off")  # refuses an unknown preset before any work is done
    arms: dict[str, Arm] = {}
    with AnswerChecker() as checker:

        def add(name: str, model: str, **given: Any) -> None:
            arms[name] = run_arm(model, questions, options, checker, **given)
            print(name, arms[name].means(range(len(questions))), file=sys.stderr, flush=True)

        for name, effort in BEFORE.items():
            add(name, options.before, effort=effort)
        for given in trained:
            folder, _, preset = given.partition("+")
            add(given, folder, preset=preset or "off")
            if options.cut:
                tight = {"thinking_budget": arms["before"].budget(fmean(arms[given].tokens))}
                add(f"{given} cut", options.before, preset="budget", **tight)
                add(f"{given} cut hard", options.before, policies=[HardBudget()], **tight)
        for name, number in product(("before", *trained), options.stated):
            model = options.before if name == "before" else name.partition("+")[0]
            add(f"{name}@{number}", model, strategy="lcpo", thinking_budget=number)
    for given in options.after:
        if "," in given:
            arms[given] = Arm.mean([arms[folder] for folder in given.split(",")])
    return arms


def compare(before: Arm, after: Arm) -> dict[str, Any]:
    """The change in accuracy (`points`) and the share of tokens `saved`, with their intervals."""
    points = paired_bootstrap([100 * (b - a) for a, b in zip(before.right, after.right, strict=True)])
    return {"points": asdict(points), "saved": asdict(ratio_bootstrap(after.tokens, before.tokens))}


def main(argv: list[str] | None = None) -> None:
    """Answer, compare and print."""
    parser = make_parser(__doc__)
    parser.add_argument("--before", default="tersely-tiny-small", help="name or folder (default: %(default)s)")
    parser.add_argument(
        "--after", required=True, action="append", help="FOLDER, FOLDER+PRESET or several by commas; may be repeated"
    )
    parser.add_argument("--task", default="tiny", help="tiny, gym:NAME or a JSONL file (default: %(default)s)")
    parser.add_argument(
        "--split",
        choices=("calibrate", "test"),
        default="test",
        help="calibrate is for choosing recipes; not for files (default: %(default)s)",
    )
    parser.add_argument("--limit", type=int, default=600, help="questions of the split (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of questions and samples (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=96, help="questions decoded at a time (default: %(default)s)")
    parser.add_argument("--max-new-tokens", type=int, default=1024, help="of an answer (default: %(default)s)")
    parser.add_argument("--cut", action="store_true", help="also cut the model before training to as many tokens")
    parser.add_argument("--stated", type=int, nargs="+", default=(), help="also state these numbers of tokens")
    options = parser.parse_args(argv)
    for given in options.after:
        folders = given.split(",")
        if len(set(folders)) < len(folders) or not all(folders) or set(folders) & BEFORE.keys():
            parser.error(f"--after {given}: accepted: folders by commas, each once, none of them {', '.join(BEFORE)}")

    if options.split != "test" and Path(options.task).suffix:
        parser.error(f"--split {options.split} with {options.task}: a file has no splits")
    questions = load(options.task, options.split, options.limit, options.seed)
    arms = run_arms(options, questions)
    levels = sorted({question.level for question in questions if question.level is not None})
    indices = {"all": list(range(len(questions)))} | {
        str(level): [i for i, question in enumerate(questions) if question.level == level] for level in levels
    }
    tables = {name: {key: one.means(at) for key, at in indices.items()} for name, one in arms.items()}
    changes = {name: compare(arms["before"], one) for name, one in arms.items() if name not in BEFORE}
    for name in arms.keys() & {f"{run}{suffix}" for run in arms for suffix in (" cut", " cut hard")}:
        changes[name] = compare(arms[name], arms[name.partition(" cut")[0]])
    found = {"arms": tables, "changes": changes, "questions": len(questions), "split": options.split}
    print_figures(found, options.json)


if __name__ == "__main__":
    main()
