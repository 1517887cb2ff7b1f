"""Speed and quality of checkpoints with low-bit weights, in vLLM or transformers.

The first checkpoint is compared with each of the others: `speed_b8` is tokens per second with 8 concurrent requests,
and `speed_b8_over` the ratio to each other checkpoint, medians over alternating runs. Prompts are short, so nearly all
of it is decoding. --text adds `perplexity`, and its change from each other with an interval over rows of text; --tasks
adds `right`, the accuracy of greedy answers to the questions of a JSONL, and its change. In transformers, --answers
adds `divergence`, the KL divergence (nats) of next tokens from the last checkpoint on its answers to the questions of a
JSONL; it distinguishes checkpoints whose accuracy does not.

    python benchmarks/quantized_models.py w4a8=OUT bf16=MODEL int8=INT8 int4=INT4 --text dev.jsonl --tasks dev.jsonl
    python benchmarks/quantized_models.py w4a8=OUT bf16=MODEL --engine transformers --batches '' --answers dev.jsonl
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from measuring import make_parser, median_ratio, print_figures, time_in_turns

from tersely.controller.text.answers import extract_answer, normalize_answer
from tersely.controller.types import Request, SamplingParams
from tersely.evaluation.stats import Interval, paired_bootstrap, ratio_bootstrap
from tersely.evaluation.tasks.equality import AnswerChecker
from tersely.evaluation.tasks.questions import Question, load

PROMPT = "Write a function that sorts a list of numbers, number {}."
ASK = "{}\nThink step by step, and put the final answer in \\boxed{{}}."


class Side(Protocol):
    """A loaded checkpoint."""

    def write(self, rows: int, tokens: int) -> int:
        """Decode `rows` prompts for `tokens` tokens each; returns the number of tokens."""


@dataclass
class VLLMSide:
    """A vLLM in this process. Several may coexist, and none may be shut down before all are finished."""

    folder: str
    rows: int
    length: int
    compiled: bool
    llm: Any = field(init=False)

    def __post_init__(self) -> None:
        from vllm import LLM

        self.llm = LLM(
            self.folder,
            dtype="bfloat16",
            max_model_len=self.length,
            max_num_seqs=self.rows,
            enforce_eager=not self.compiled,
            kv_cache_memory_bytes=1 << 30,
            enable_prefix_caching=False,
            disable_log_stats=True,
            seed=0,
        )

    def _params(self, **given: Any) -> Any:
        from vllm import SamplingParams

        return SamplingParams(temperature=0, **given)

    def write(self, rows: int, tokens: int) -> int:
        """See `Side`."""
        params = self._params(max_tokens=tokens, min_tokens=tokens, detokenize=False)
        done = self.llm.generate([PROMPT.format(row) for row in range(rows)], params, use_tqdm=False)
        return sum(len(output.outputs[0].token_ids) for output in done)

    def losses(self, rows: Sequence[list[int]]) -> list[float]:
        """The mean negative log-likelihood of each row of tokens, of all but its first."""
        prompts = [{"prompt_token_ids": row} for row in rows]
        done = self.llm.generate(prompts, self._params(max_tokens=1, prompt_logprobs=0), use_tqdm=False)
        return [
            -statistics.fmean(at[token].logprob for token, at in zip(row[1:], output.prompt_logprobs[1:], strict=True))
            for row, output in zip(rows, done, strict=True)
        ]

    def answers(self, questions: Sequence[Question], tokens: int) -> list[str]:
        """Greedy answers."""
        asked = [[{"role": "user", "content": ASK.format(question.problem)}] for question in questions]
        done = self.llm.chat(asked, self._params(max_tokens=tokens), use_tqdm=False)
        return [normalize_answer(extract_answer(output.outputs[0].text)) for output in done]


class TransformersSide:
    """Our engine on transformers."""

    def __init__(self, folder: str) -> None:
        from tersely.controller.engines.transformers.engine import load_engine

        self.engine = load_engine(folder, grouped=True)

    def write(self, rows: int, tokens: int) -> int:
        """See `Side`."""
        prompts = [tuple(self.engine.tokenizer(PROMPT.format(row))["input_ids"]) for row in range(rows)]
        done = self.engine.generate([Request(prompt, tokens) for prompt in prompts], SamplingParams(temperature=0))
        return sum(len(one.token_ids) for one in done)


def speeds(sides: dict[str, Side], batches: Sequence[int], tokens: int, repeats: int) -> dict[str, Any]:
    """Tokens per second of each side, and the ratio of the first to the others."""
    found: dict[str, Any] = {}
    first, *others = sides
    for rows in batches:
        runs = {name: partial(side.write, rows, tokens) for name, side in sides.items()}
        made = {name: run() for name, run in runs.items()}
        taken = time_in_turns(runs, repeats)
        rates = {name: [made[name] / seconds for seconds in timed] for name, timed in taken.items()}
        found[f"speed_b{rows}"] = {name: statistics.median(timed) for name, timed in rates.items()}
        found[f"speed_b{rows}_over"] = {name: median_ratio(rates[first], rates[name]) for name in others}
    return found


def perplexities(sides: dict[str, VLLMSide], file: Path, rows: int, length: int) -> dict[str, Any]:
    """Perplexities on a text not used for calibration, and the relative increase of the first over the others."""
    from tersely.kernels.quantization.calibration import tokenize_rows

    first, *others = sides
    text = tokenize_rows(file, sides[first].llm.get_tokenizer(), rows, length).tolist()
    losses = {name: np.asarray(side.losses(text)) for name, side in sides.items()}
    above = {name: paired_bootstrap(losses[first] - losses[name], bounded=False) for name in others}
    return {
        "perplexity": {name: math.exp(float(loss.mean())) for name, loss in losses.items()},
        "perplexity_above": {name: [math.expm1(value) for value in ends(change)] for name, change in above.items()},
        "perplexity_tokens": len(text) * (length - 1),
    }


def accuracies(sides: dict[str, VLLMSide], questions: Sequence[Question], tokens: int) -> dict[str, Any]:
    """Accuracies, and the difference of the first from each other."""
    first, *others = sides
    right: dict[str, np.ndarray] = {}
    with AnswerChecker() as checker:
        for name, side in sides.items():
            said = side.answers(questions, tokens)
            graded = [checker.grade(question, answer).equal for question, answer in zip(questions, said, strict=True)]
            right[name] = np.asarray(graded, dtype=float)
            print(f"{name}: {right[name].mean():.1%} correct", file=sys.stderr, flush=True)
    return {
        "right": {name: float(one.mean()) for name, one in right.items()},
        "right_change": {name: ends(paired_bootstrap(right[first] - right[name])) for name in others},
        "questions": len(questions),
    }


def divergences(sides: dict[str, TransformersSide], file: Path, rows: int, length: int) -> dict[str, Any]:
    """Divergences of all from the last on its own answers, and the relative increase of the first over the others."""
    from tersely.kernels.quantization.calibration import (
        cache_reference,
        kl_to_reference,
        read_questions,
        sample_answers,
    )

    *others, last = sides
    own = sides[last].engine
    text = sample_answers(own.model, own.tokenizer, read_questions(file), rows, length, seed=0)
    expected, _ = cache_reference(own.model, text)
    apart = {name: kl_to_reference(sides[name].engine.model, text, expected)[0] for name in others}
    saved = {name: ratio_bootstrap(apart[others[0]], apart[name]) for name in others[1:]}
    return {
        "divergence": {name: statistics.fmean(each) for name, each in apart.items()},
        "divergence_over": {name: [1 - one.estimate, 1 - one.high, 1 - one.low] for name, one in saved.items()},
        "divergence_tokens": text.numel(),
    }


def ends(interval: Interval) -> list[float]:
    """An estimate and its interval."""
    return [interval.estimate, interval.low, interval.high]


def arguments(argv: list[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = make_parser(__doc__, repeats=5)
    parser.add_argument(
        "sides", nargs="+", metavar="NAME=FOLDER", help="checkpoints; the first is compared with the others"
    )
    parser.add_argument("--engine", choices=("vllm", "transformers"), default="vllm", help="(default: %(default)s)")
    parser.add_argument(
        "--batches", default="1,8,32", help="concurrent requests, separated by commas; '' for no speeds"
    )
    parser.add_argument("--tokens", type=int, default=64, help="new tokens per request (default: %(default)s)")
    parser.add_argument(
        "--eager", action="store_true", help="vLLM without compilation, which takes a minute per checkpoint"
    )
    parser.add_argument("--text", type=Path, help="text or JSONL for perplexities, in vLLM")
    parser.add_argument("--answers", type=Path, help="JSONL of {problem} for divergences, in transformers")
    parser.add_argument(
        "--rows", type=int, default=64, help="rows of text or answers, of --length tokens each (default: %(default)s)"
    )
    parser.add_argument("--length", type=int, default=512, help="tokens per row (default: %(default)s)")
    parser.add_argument("--tasks", help="JSONL of {question, answer} to answer, in vLLM")
    parser.add_argument("--limit", type=int, default=250, help="questions of --tasks (default: %(default)s)")
    parser.add_argument("--max-new-tokens", type=int, default=512, help="most tokens per answer (default: %(default)s)")
    options = parser.parse_args(argv)
    if len(options.sides) < 2 or not all("=" in side for side in options.sides):
        parser.error("give at least two checkpoints, each as NAME=FOLDER")
    if options.engine == "transformers" and (options.text or options.tasks):
        parser.error("perplexities and right answers are measured in vLLM; leave --engine out")
    if options.engine == "vllm" and options.answers:
        parser.error("divergences are measured in transformers; give --engine transformers")
    return options


def main(argv: list[str] | None = None) -> None:
    """Load all checkpoints, measure and print."""
    options = arguments(argv)
    folders = dict(side.split("=", 1) for side in options.sides)
    batches = [int(rows) for rows in options.batches.split(",") if rows]
    found: dict[str, Any] = {"engine": options.engine}
    if options.engine == "transformers":
        loaded = {name: TransformersSide(folder) for name, folder in folders.items()}
        found |= speeds(dict(loaded), batches, options.tokens, options.repeats)
        if options.answers:
            found |= divergences(loaded, options.answers, options.rows, options.length)
    else:
        from tersely.controller.vllm.engine import prepare_environment

        prepare_environment(on_cpu=True)
        if options.eager:
            os.environ["VLLM_CPU_CI_ENV"] = "1"  # no warm-up, but no compiler either
        length = max(options.length + 1, options.max_new_tokens + 512)
        sides = {n: VLLMSide(f, max(batches, default=32), length, not options.eager) for n, f in folders.items()}
        found |= speeds(dict(sides), batches, options.tokens, options.repeats)
        if options.text:
            found |= perplexities(sides, options.text, options.rows, options.length)
        if options.tasks:
            found |= accuracies(sides, load(options.tasks, "test", options.limit, 0), options.max_new_tokens)
    print_figures(found, options.json)


if __name__ == "__main__":
    main()
