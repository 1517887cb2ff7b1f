"""Tokens and accuracy of several samples a question next to one, all rules on the same questions in one run.

A ratio is a rule's tokens over those of the full majority vote, so below 1 means that it is cheaper. Tokens are all
that was written, stopped samples and branches read again included; prompts are not. `equal` is how much more often a
rule is right, with a 95 % interval, than a majority of as many samples as have the same tokens: the first ones of the
full vote, interpolated between whole numbers. `written` is the same for tokens that were written, none read again.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

import numpy as np
from measuring import make_parser, print_figures

import tersely
from tersely.controller.engines.transformers.engine import load_engine
from tersely.controller.sampling import SampleResult
from tersely.controller.sampling.deepconf import DeepConf, DeepConfOffline
from tersely.controller.sampling.research.guided import Guided
from tersely.controller.sampling.research.rules import Tree
from tersely.controller.sampling.rules import AggregationRule, Majority, ShortMofK, Vote, VoteFirst, tally
from tersely.controller.text.answers import extract_answer
from tersely.evaluation.runner import batch_seed
from tersely.evaluation.stats import paired_bootstrap
from tersely.evaluation.tasks.questions import Question, is_right, load

FULL = "majority"
RULES: Mapping[str, AggregationRule] = {
    FULL: Majority(early=False),
    "early": Majority(),
    "lazy": Majority(lazy=True),
    "confident": DeepConfOffline(measure="mean", keep=100),
    "confident-tail": DeepConfOffline(keep=50, window=64),
    "short": ShortMofK(m=3),
    "vote-first": VoteFirst(),
    "deepconf": DeepConf(window=64),
    "tree": Tree(),
    "tree-backup": Tree(backup=5.0),
}


def compare_at_equal_tokens(
    done: Sequence[SampleResult], full: Sequence[SampleResult], questions: Sequence[Question], reading: bool = True
) -> list[float]:
    """The mean gain in being right over a majority of the same tokens, and the ends of its interval.

    Without `reading`, tokens that were read again do not count.
    """
    costs = np.cumsum([[sample.usage.total for sample in one.samples] for one in full], axis=1).mean(axis=0)
    spent = np.mean([one.usage.total - one.usage.recomputed * (not reading) for one in done])
    size = np.interp(spent, costs, np.arange(1, len(costs) + 1))
    gains = []
    for one, votes, question in zip(done, full, questions, strict=True):
        answers = [Vote(i, extract_answer(sample.answer)) for i, sample in enumerate(votes.samples)]
        rights = [is_right(next(iter(tally(answers[: i + 1])), ""), question.answer) for i in range(len(answers))]
        majority = np.interp(size, np.arange(1, len(costs) + 1), rights)
        gains.append(is_right(one.answer, question.answer) - float(majority))
    gain = paired_bootstrap(gains)
    return [gain.estimate, gain.low, gain.high]


def main(argv: list[str] | None = None) -> None:
    """Run all rules and print what they cost and how often they are right."""
    parser = make_parser(__doc__)
    parser.add_argument("--model", default="tersely-tiny-small", help="name or folder (default: %(default)s)")
    parser.add_argument(
        "--limit", type=int, default=100, help="questions of the embedded family (default: %(default)s)"
    )
    parser.add_argument("--k", type=int, default=5, help="samples a question (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of questions and samples (default: %(default)s)")
    parser.add_argument("--preset", default="off", help="what controls each sample (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=10, help="questions a batch (default: %(default)s)")
    parser.add_argument("--max-new-tokens", type=int, default=1024, help="of a sample (default: %(default)s)")
    parser.add_argument("--rules", default=",".join(RULES), help="which, comma-separated (default: %(default)s)")
    parser.add_argument(
        "--prm", help="folder of `tersely train prm`: also decode guided by it, by one and two thoughts"
    )
    parser.add_argument("--candidates", type=int, default=5, help="of guided decoding (default: %(default)s)")
    options = parser.parse_args(argv)

    engine = load_engine(options.model)
    questions = load("tiny", "test", options.limit, options.seed)
    found: dict[str, dict[str, float]] = {}
    full: list[SampleResult] = []
    chosen = {name: RULES[name] for name in options.rules.split(",") if name and name != FULL}
    if options.prm:
        chosen["guided"] = Guided(options.prm)
    for name, rule in {FULL: RULES[FULL], "single": Majority(), **chosen}.items():
        done: list[SampleResult] = []
        for start in range(0, len(questions), options.batch):
            done += tersely.sample(
                engine,
                [question.problem for question in questions[start : start + options.batch]],
                k=1 if name == "single" else options.candidates if isinstance(rule, Guided) else options.k,
                rule=rule,
                preset=options.preset,
                max_new_tokens=options.max_new_tokens,
                seed=batch_seed(options.seed, start),
            )
        full = full or done
        found[name] = {
            "right": sum(is_right(one.answer, q.answer) for one, q in zip(done, questions, strict=True)) / len(done),
            "tokens": sum(one.usage.total for one in done) / len(done),
            "recomputed": sum(one.usage.recomputed for one in done) / len(done),
        }
        for kind in ("equal", "written"):
            ends = compare_at_equal_tokens(done, full, questions, kind == "equal")
            found[name] |= {kind + end: round(value, 4) for end, value in zip(("", "_low", "_high"), ends, strict=True)}
        print(name, found[name], file=sys.stderr, flush=True)
    for figures in found.values():
        figures["ratio"] = round(figures["tokens"] / found[FULL]["tokens"], 4)
    flat = {f"{name}_{key}": value for name, figures in found.items() for key, value in figures.items()}
    print_figures(flat, options.json)


if __name__ == "__main__":
    main()
