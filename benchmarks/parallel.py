"""Tokens and accuracy of several samples a question next to one, all rules on the same questions in one run.

A ratio is a rule's tokens over those of the full majority vote, so below 1 means that it is cheaper. Tokens are all
that was written, stopped samples and branches read again included; prompts are not.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping

from measuring import make_parser, print_figures

import tersely
from tersely.controller.engines.transformers.engine import load_engine
from tersely.controller.sampling import SampleResult
from tersely.controller.sampling.deepconf import DeepConf, DeepConfOffline
from tersely.controller.sampling.research.rules import Tree
from tersely.controller.sampling.rules import AggregationRule, Majority, ShortMofK, VoteFirst
from tersely.evaluation.runner import batch_seed
from tersely.evaluation.tasks.questions import is_right, load

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
}


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
    options = parser.parse_args(argv)

    engine = load_engine(options.model)
    questions = load("tiny", "test", options.limit, options.seed)
    found: dict[str, dict[str, float]] = {}
    for name, rule in {"single": Majority(), **RULES}.items():
        done: list[SampleResult] = []
        for start in range(0, len(questions), options.batch):
            done += tersely.sample(
                engine,
                [question.problem for question in questions[start : start + options.batch]],
                k=1 if name == "single" else options.k,
                rule=rule,
                preset=options.preset,
                max_new_tokens=options.max_new_tokens,
                seed=batch_seed(options.seed, start),
            )
        found[name] = {
            "right": sum(is_right(one.answer, q.answer) for one, q in zip(done, questions, strict=True)) / len(done),
            "tokens": sum(one.usage.total for one in done) / len(done),
        }
        print(name, found[name], file=sys.stderr, flush=True)
    for figures in found.values():
        figures["ratio"] = round(figures["tokens"] / found[FULL]["tokens"], 4)
    flat = {f"{name}_{key}": value for name, figures in found.items() for key, value in figures.items()}
    print_figures(flat, options.json)


if __name__ == "__main__":
    main()
