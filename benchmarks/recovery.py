"""What a prompt learned on a compressed model gives back: there, at other levels of compression, and on other tasks.

After Compress, Then Prompt (arXiv 2305.11186), whose prompts transfer between data sets and levels of compression.
Every model answers every task without a prompt and with each prompt that training runs have learned
(`training/recipes/recover-tiny.yaml`); the first model is the uncompressed one. Each arm gives greedy accuracy, and the
next-token loss (nats per token) in the first model's own, sampled answers. `given_back` is how an arm with a prompt
differs from its model without one, `short_of_full` how any differs from the first model; 95 % intervals over questions.

    python benchmarks/rounded_checkpoint.py tersely-tiny-small Q3 --bits 3 --group 64
    python benchmarks/rounded_checkpoint.py tersely-tiny-small Q2 --bits 2 --group 16
    tersely train hint --config training/recipes/recover-tiny.yaml --set model=Q2 --set out=runs/recover-2
    python benchmarks/recovery.py full=tersely-tiny-small 3bits=Q3 2bits=Q2 --prompt at2=runs/recover-2/model
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from measuring import answer_all, make_parser, print_figures
from torch import Tensor

from tersely.controller.engines.transformers.engine import TransformersEngine, load_engine
from tersely.controller.options import GenerationOptions
from tersely.controller.text.answers import extract_answer
from tersely.controller.types import SamplingParams
from tersely.evaluation.runner import SessionRunner
from tersely.evaluation.stats import Interval, paired_bootstrap
from tersely.evaluation.tasks.equality import AnswerChecker, right_answers
from tersely.evaluation.tasks.questions import Question, load
from tersely.training.config import Rollouts
from tersely.training.methods.sft import add_prompt, read_prompt
from tersely.training.sampling import CompletionRequest, RolloutSampler

NO_PROMPT = ""


@dataclass(frozen=True, slots=True)
class Arm:
    """For each question whether it is answered right, and the loss in the first model's answer."""

    right: Sequence[float]
    losses: Sequence[float]

    def minus(self, other: Arm) -> dict[str, Any]:
        """Percentage points of accuracy and nats of loss more than another arm, with intervals."""
        points = paired_bootstrap([a - b for a, b in zip(self.right, other.right, strict=True)])
        nats = paired_bootstrap([a - b for a, b in zip(self.losses, other.losses, strict=True)], bounded=False)
        return {"points": [100 * value for value in ends(points)], "nats": ends(nats)}

    def means(self) -> dict[str, float]:
        count = len(self.right)
        return {"right": sum(self.right) / count, "loss": sum(self.losses) / count}


def ends(interval: Interval) -> list[float]:
    """An estimate and its interval."""
    return [interval.estimate, interval.low, interval.high]


def load_with_prompt(model: str, prompt: Tensor | None) -> TransformersEngine:
    """A model with a learned prompt first in its chat template, if one is given."""
    engine = load_engine(model)
    if prompt is not None:
        add_prompt(engine.model, engine.tokenizer, prompt)
    return engine


def write_answers(engine: TransformersEngine, questions: Sequence[Question], options: Any) -> list[tuple[int, ...]]:
    """The model's own answers, sampled at temperature 1: the texts that losses are measured in."""
    sampler = RolloutSampler(engine, Rollouts(max_new_tokens=options.max_new_tokens, batch=options.batch))
    return [rollout.ids for rollout in sampler([CompletionRequest(q.problem) for q in questions], options.seed)]


@torch.no_grad()
def measure_losses(
    engine: TransformersEngine, questions: Sequence[Question], answers: Sequence[Sequence[int]]
) -> list[float]:
    """The mean negative log-likelihood of the tokens of each answer behind its question."""
    sampler = RolloutSampler(engine, Rollouts())
    losses = []
    for question, answer in zip(questions, answers, strict=True):
        prompt = sampler.prompt_ids(question.problem, "normal")
        ids = torch.tensor([[*prompt, *answer]], device=engine.model.device)
        logits = engine.model(ids, use_cache=False, logits_to_keep=len(answer) + 1).logits[0, :-1].float()
        losses.append(F.cross_entropy(logits, ids[0, -len(answer) :]).item())
    return losses


def run_arm(
    engine: TransformersEngine,
    questions: Sequence[Question],
    answers: Sequence[Sequence[int]],
    options: argparse.Namespace,
    checker: AnswerChecker,
) -> Arm:
    """Answer all questions greedily, and measure the losses in the first model's answers."""
    settings = GenerationOptions(
        preset="off", max_new_tokens=options.max_new_tokens, sampling=SamplingParams(temperature=0)
    )
    results = answer_all(SessionRunner(engine), questions, settings, seed=options.seed, size=options.batch)
    said = [(question, extract_answer(result.answer)) for question, result in zip(questions, results, strict=True)]
    return Arm([float(right) for right in right_answers(said, checker)], measure_losses(engine, questions, answers))


def run_task(
    task: str, models: Mapping[str, str], prompts: Mapping[str, Tensor | None], options: argparse.Namespace
) -> dict[str, Any]:
    """All arms on the test questions of one task, by model and prompt, with their differences."""
    questions = load(task, "test", options.limit, options.seed)
    answers = write_answers(load_engine(next(iter(models.values()))), questions, options)
    arms: dict[tuple[str, str], Arm] = {}
    with AnswerChecker() as checker:
        for model, folder in models.items():
            for name, prompt in prompts.items():
                arm = run_arm(load_with_prompt(folder, prompt), questions, answers, options, checker)
                arms[model, name] = arm
                print(task, model, name, arm.means(), file=sys.stderr, flush=True)
    full = next(iter(arms.values()))
    return {
        f"{model}+{name}" if name else model: {
            **arm.means(),
            **({} if arm is full else {"short_of_full": arm.minus(full)}),
            **({"given_back": arm.minus(arms[model, NO_PROMPT])} if name else {}),
        }
        for (model, name), arm in arms.items()
    }


def main(argv: list[str] | None = None) -> None:
    """Measure and print."""
    parser = make_parser(__doc__)
    parser.add_argument("models", nargs="+", metavar="NAME=FOLDER", help="models; the first is the uncompressed one")
    parser.add_argument("--prompt", action="append", default=[], metavar="NAME=FOLDER", help="a model with a prompt")
    parser.add_argument("--tasks", default="tiny", help="tasks by commas, as for training (default: %(default)s)")
    parser.add_argument("--limit", type=int, default=400, help="test questions of each (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of questions and samples (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=100, help="questions decoded at a time (default: %(default)s)")
    parser.add_argument("--max-new-tokens", type=int, default=1024, help="of an answer (default: %(default)s)")
    options = parser.parse_args(argv)
    if not all("=" in given for given in (*options.models, *options.prompt)):
        parser.error("give models and prompts as NAME=FOLDER")
    models = dict(given.split("=", 1) for given in options.models)
    prompts: dict[str, Tensor | None] = {NO_PROMPT: None}
    for given in options.prompt:
        name, folder = given.split("=", 1)
        engine = load_engine(folder)
        prompts[name] = read_prompt(engine.model, engine.tokenizer)
    tables = {task: run_task(task, models, prompts, options) for task in options.tasks.split(",")}
    print_figures({"tasks": tables, "questions": options.limit}, options.json)


if __name__ == "__main__":
    main()
