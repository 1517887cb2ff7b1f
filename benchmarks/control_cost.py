"""Microseconds of control per token of thinking, by preset and by the length of the thinking, without a model.

The text is written in the manner of reasoning models: paragraphs of arithmetic with formulas, conclusions and doubts,
in which no two answers agree, so that nothing ends it early. `step_ms` is what controlling all rows of one decoding
step takes, at the same length, where each row gets its next token.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

from measuring import make_parser, print_figures

from tersely.controller.budgets import Budget
from tersely.controller.controller import Controller
from tersely.controller.policies import make_policies
from tersely.controller.replay import bind_for_replay
from tersely.controller.text.markers import Markers
from tersely.controller.text.tokenizer_adapter import TokenizerAdapter
from tersely.errors import TerselyError
from tersely.evaluation.replay.reader import load_tokenizer

QUESTION = "A farm sells eggs in boxes of 12. How many boxes are needed for the whole week?"
MARKERS = Markers("<think>", "</think>")
BUDGET = Budget("normal", 1 << 30)
PARAGRAPHS = (
    "So first I add the {a} eggs of Monday to the {b} of Tuesday. That makes {c} eggs, which is more than I thought.",
    "Wait, the problem says that each box holds 12. Let me write \\( {a} + {b} = {c} \\) and divide it by 12 later on.",
    "Hmm, if the hens lay {a} a day, then \\[ 7 \\times {a} = {c} \\] for the week. But what about the broken ones?",
    "Therefore, {c} boxes might be enough. Alternatively, they could use {b} boxes and keep the rest.",
    "Let me check that again: {a} times {b} is {c}, and the remainder is small, e.g. 3.5 or so, which I ignore.",
    "The answer could be {c}. However, I am not sure about the {a} eggs that were sold at the market for $2 each.",
)


def write_thinking(codec: TokenizerAdapter, tokens: int) -> list[int]:
    """Token ids of so much thinking; the same each time."""
    rng = Random(0)
    ids: list[int] = []
    while len(ids) < tokens:
        a, b = rng.randrange(2, 10**6), rng.randrange(2, 10**6)
        ids += codec.encode(rng.choice(PARAGRAPHS).format(a=a, b=b, c=a + b) + "\n\n")
    return ids[:tokens]


def make_controller(preset: str, codec: TokenizerAdapter) -> Controller:
    """A controller of one row, as for a model without probes."""
    policies = bind_for_replay(make_policies(preset))
    return Controller(policies, codec, MARKERS, BUDGET, prompt=QUESTION, shadow=True)


def time_tokens(preset: str, codec: TokenizerAdapter, ids: Sequence[int], repeats: int) -> float:
    """Microseconds per token, the least of so many runs."""
    best = float("inf")
    for _ in range(repeats):
        controller = make_controller(preset, codec)
        start = time.process_time()
        for token in ids:
            controller.observe(token)
        best = min(best, time.process_time() - start)
    return 1e6 * best / len(ids)


def time_step(preset: str, codec: TokenizerAdapter, ids: Sequence[int], rows: int, steps: int) -> float:
    """Milliseconds that one step of so many rows takes, on the mean of the last `steps` tokens of a long thinking."""
    controllers = [make_controller(preset, codec) for _ in range(rows)]
    for row, controller in enumerate(controllers):  # rows are at different places of the text
        for token in ids[: len(ids) - steps - row % 64]:
            controller.observe(token)
    start = time.process_time()
    for step in range(steps):
        for row, controller in enumerate(controllers):
            controller.observe(ids[len(ids) - steps - row % 64 + step])
    return 1e3 * (time.process_time() - start) / steps


def main(argv: list[str] | None = None) -> None:
    """Measure and print the cost of control."""
    parser = make_parser(__doc__, repeats=3)
    parser.add_argument("--presets", default="budget,careful,balanced", help="comma-separated (default: %(default)s)")
    parser.add_argument("--lengths", default="1000,16000,64000", help="thinking tokens (default: %(default)s)")
    parser.add_argument(
        "--tokenizer", type=Path, help="a tokenizer.json or its folder; by default a simple one of ours"
    )
    parser.add_argument("--rows", type=int, default=256, help="of a step; 0 leaves it out (default: %(default)s)")
    parser.add_argument("--step-length", type=int, default=16_000, help="tokens before the step (default: %(default)s)")
    options = parser.parse_args(argv)
    codec = TokenizerAdapter(load_tokenizer(options.tokenizer))
    lengths = [int(length) for length in options.lengths.split(",")]
    ids = write_thinking(codec, max(*lengths, options.step_length))
    result: dict[str, Any] = {}
    for preset in options.presets.split(","):
        time_tokens(preset, codec, ids[:1000], 1)  # what is worked out once per tokenizer
        for length in lengths:
            repeats = options.repeats * max(1, 64_000 // length)  # a machine may be slow for longer than a short run
            result[f"{preset}_{length}_us"] = round(time_tokens(preset, codec, ids[:length], repeats), 3)
        if options.rows:
            cost = time_step(preset, codec, ids[: options.step_length], options.rows, 200)
            result[f"{preset}_{options.step_length}_step_ms"] = round(cost, 3)
    print_figures(result, options.json)


if __name__ == "__main__":
    try:
        main()
    except TerselyError as error:
        sys.exit(str(error))
