"""What a depth shortcut costs and saves: the same questions with every layer, with exits, and with exits by chance.

`full` runs every layer; `shortcut` lets tokens leave as `tersely train shortcut` has learnt; `random` lets the same
share of thinking tokens leave through the same adapter, drawn by chance. All arms in one run, paired by question.
Layers are counted as (token, layer) pairs of what is put out; `multiplications` are those with weights, and count what
gate, adapter, keys and values take. Times are at batch 1, one thread, both arms in turn on each question; the clock is
that of the processor unless told otherwise, for a machine that does other work.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from measuring import CLOCKS, answer_all, make_parser, print_figures

from tersely.controller.engines.transformers.engine import TransformersEngine, load_engine
from tersely.controller.engines.transformers.research.early_exit import DepthShortcut, LeavingSequence
from tersely.controller.options import GenerationOptions
from tersely.controller.text.answers import extract_answer
from tersely.controller.trace import GenerationResult
from tersely.controller.types import BindContext, SamplingParams
from tersely.evaluation.bench.arms import check_unseen
from tersely.evaluation.runner import SessionRunner
from tersely.evaluation.stats import paired_bootstrap, ratio_bootstrap, studentized_bootstrap
from tersely.evaluation.tasks.equality import AnswerChecker, right_answers
from tersely.evaluation.tasks.questions import Question, load
from tersely.probes.research.learned import Shortcut

_DRAW = random.Random(0)


class Counting(SessionRunner):
    """Answers, and adds up what left early."""

    def __init__(self, engine: TransformersEngine) -> None:
        super().__init__(engine)
        self.left = self.stayed = self.put_out = 0

    def answer(self, problems: Sequence[str], options: GenerationOptions) -> list[GenerationResult]:
        """See `Answerer.answer`."""
        rows = self.session.prepare(problems, options)
        done = self.session.engine.generate([row.request for row in rows], options.sampling)
        for row in rows:
            for modifier in row.request.modifiers:
                if isinstance(modifier, LeavingSequence):
                    self.left += modifier.left
                    self.stayed += modifier.stayed
        self.put_out += sum(len(one.token_ids) for one in done)
        return [self.session.finish(row, one) for row, one in zip(rows, done, strict=True)]


@dataclass(frozen=True, slots=True)
class AtRandom(DepthShortcut):
    """Lets a share of the thinking tokens leave, whatever the gate says of them."""

    share: float = 0.0

    def attach(self, boundary: Callable[[], str | None]) -> LeavingSequence:
        """See `ForwardModifier.attach`."""
        return LeavingSequence(self, lambda: boundary() is not None and _DRAW.random() < self.share)


@dataclass(frozen=True, slots=True)
class Arm:
    """What one way of answering gave: of each question whether it is right and its tokens; and how many left."""

    right: list[float]
    tokens: list[float]
    left: int
    stayed: int
    put_out: int


def arm(
    engine: TransformersEngine, questions: Sequence[Question], options: GenerationOptions, seed: int, batch: int
) -> Arm:
    """Answer all questions in one way."""
    answerer = Counting(engine)
    made = answer_all(answerer, questions, options, seed=seed, size=batch)
    with AnswerChecker() as checker:
        right = right_answers(
            [(q, extract_answer(one.answer)) for q, one in zip(questions, made, strict=True)], checker
        )
    tokens = [float(one.usage.total) for one in made]
    return Arm([float(one) for one in right], tokens, answerer.left, answerer.stayed, answerer.put_out)


def multiplications(engine: TransformersEngine, shortcut: Shortcut, one: Arm) -> float:
    """The share of the multiplications with weights that an arm does not do, net of what leaving takes."""
    blocks = list(engine.model.get_decoder().layers)
    sizes = [sum(p.numel() for p in block.parameters() if p.dim() > 1) for block in blocks]
    filled = [sum(getattr(block.self_attn, name).weight.numel() for name in ("k_proj", "v_proj")) for block in blocks]
    upper = slice(shortcut.layer, None)
    adapter, gate = (
        sum(shortcut.arrays[name].size for name in names) for names in (("down", "up"), ("gate_in", "gate_out"))
    )
    saved = one.left * (sum(sizes[upper]) - sum(filled[upper]) - adapter) - (one.left + one.stayed) * gate
    whole = sum(sizes) + engine.model.get_output_embeddings().weight.numel()
    return float(saved / (one.put_out * whole))


def paired(full: Arm, other: Arm) -> dict[str, Any]:
    """How another arm differs from the full one, with intervals over questions."""
    right = [b - a for a, b in zip(full.right, other.right, strict=True)]
    tokens = [b - a for a, b in zip(full.tokens, other.tokens, strict=True)]
    return {"accuracy": asdict(paired_bootstrap(right)), "tokens": asdict(studentized_bootstrap(tokens))}


def timed(
    engine: TransformersEngine, questions: Sequence[Question], arms: Sequence[GenerationOptions], clock: str
) -> dict[str, Any]:
    """Milliseconds a token of each arm at batch 1, and how much less the second takes than the first."""
    answerer = Counting(engine)
    answerer.answer([questions[0].problem], arms[1])
    taken: list[list[float]] = [[], []]
    for number, question in enumerate(questions):
        for which in (0, 1) if number % 2 else (1, 0):
            before = CLOCKS[clock]()
            (made,) = answerer.answer([question.problem], arms[which])
            taken[which].append(1000 * (CLOCKS[clock]() - before) / made.usage.total)
    saving = ratio_bootstrap(taken[1], taken[0])
    return {
        "questions": len(questions),
        "clock": clock,
        "full_ms_per_token": sum(taken[0]) / len(questions),
        "shortcut_ms_per_token": sum(taken[1]) / len(questions),
        "ratio": {"estimate": 1 - saving.estimate, "low": 1 - saving.high, "high": 1 - saving.low},
    }


def measure(model: str, folder: str, options: argparse.Namespace) -> dict[str, Any]:
    """All arms of one model."""
    engine = load_engine(model)
    shortcut = Shortcut.load(Path(folder) / Shortcut.kind, engine.fingerprint(), model)
    modifier = DepthShortcut(shortcut=shortcut, threshold=options.threshold).bind(BindContext(engine))
    questions = load("tiny", "test", options.limit, options.seed)
    check_unseen([modifier], questions)
    plain = GenerationOptions(
        preset="off", max_new_tokens=options.max_new_tokens, sampling=SamplingParams(temperature=options.temperature)
    )
    early = replace(plain, modifiers=(modifier,))
    arms: dict[str, Arm] = {}
    for name, how in (("full", plain), ("shortcut", early), ("random", None)):
        if how is None:
            share = arms["shortcut"].left / max(1, arms["shortcut"].left + arms["shortcut"].stayed)
            chance = AtRandom(threshold=-float("inf"), shortcut=shortcut, share=share)
            how = replace(plain, modifiers=(chance,))
        arms[name] = arm(engine, questions, how, options.seed, options.batch)
        print(f"{model}: {name} done", file=sys.stderr, flush=True)
    found: dict[str, Any] = {"layer": shortcut.layer, "layers": shortcut.layers, "questions": len(questions)}
    upper = shortcut.layers - shortcut.layer
    for name, one in arms.items():
        found[name] = {
            "accuracy": sum(one.right) / len(questions),
            "tokens": sum(one.tokens) / len(questions),
            "left": one.left,
            "layers_saved": one.left * upper / (one.put_out * shortcut.layers),
            "multiplications_saved": multiplications(engine, shortcut, one),
        }
    found["share_left"] = arms["shortcut"].left / max(1, arms["shortcut"].left + arms["shortcut"].stayed)
    found["differences"] = {name: paired(arms["full"], arms[name]) for name in ("shortcut", "random")}
    found["time"] = timed(engine, questions[: options.timed], (plain, early), options.clock)
    return found


def main(argv: list[str] | None = None) -> None:
    """Measure each model with its shortcut, and print."""
    parser = make_parser(__doc__, clock="cpu")
    parser.add_argument(
        "--shortcuts",
        default="tersely-tiny-small=runs/shortcut-tiny,tersely-tiny-large=runs/shortcut-tiny-large",
        help="MODEL=FOLDER, separated by commas (default: %(default)s)",
    )
    parser.add_argument("--limit", type=int, default=200, help="questions of the split test (default: %(default)s)")
    parser.add_argument("--timed", type=int, default=24, help="of them answered alone as well (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of questions and samples (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=64, help="questions decoded at a time (default: %(default)s)")
    parser.add_argument("--max-new-tokens", type=int, default=1024, help="of an answer (default: %(default)s)")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 is greedy (default: %(default)s)")
    parser.add_argument("--threshold", type=float, help="in place of the one that was found")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)

    pairs = (pair.partition("=") for pair in options.shortcuts.split(","))
    print_figures({model: measure(model, folder, options) for model, _, folder in pairs}, options.json)


if __name__ == "__main__":
    main()
