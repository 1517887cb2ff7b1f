"""Seconds that each policy takes to be replayed on recorded traces of the embedded family, all in one process.

The traces are texts that the embedded models learn from, in their tokenizer; a policy that reads what an engine sees
gets the same signals and a hidden state of zeros at each token.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from itertools import islice
from random import Random
from typing import Any

import numpy as np

from tersely.controller.budgets import fit_budget
from tersely.controller.engines.transformers.engine import load_engine
from tersely.controller.policies import list_policies, make_policy
from tersely.controller.policies.base import Policy
from tersely.controller.replay import replay
from tersely.controller.text.markers import find_markers
from tersely.controller.types import BindContext, Signals, StepInfo
from tersely.errors import TerselyError
from tersely.evaluation.tasks.toy_problems import stream
from tersely.training.toy_models.traces import respond

CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
MODES = ("normal", "normal", "hard")


def recorded(tokenizer: Any, count: int) -> list[list[int]]:
    """Token ids of so many responses."""
    rng = Random(0)
    texts = (respond(problem, rng.choice(MODES), rng).text for problem in islice(stream("train", 0), count))
    return [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]


def seconds(
    policy: Policy, traces: Sequence[Sequence[int]], tokenizer: Any, step: StepInfo, clock: Callable[[], float]
) -> tuple[float, int]:
    """How long it takes to replay all traces, and how many decisions that gives."""
    markers, budget = find_markers(tokenizer), fit_budget("normal", 2048)
    start = clock()
    made = [replay(ids, [policy], tokenizer, markers, budget, steps=[step] * len(ids)) for ids in traces]
    return clock() - start, sum(map(len, made))


def main(argv: list[str] | None = None) -> None:
    """Replay and print the seconds of each policy."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--traces", type=int, default=1000, help="how many (default: %(default)s)")
    parser.add_argument("--model", default="tersely-tiny-small", help="an embedded model (default: %(default)s)")
    parser.add_argument("--clock", choices=sorted(CLOCKS), default="wall", help="cpu helps on a loaded machine")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(argv)
    engine = load_engine(options.model)
    traces = recorded(engine.tokenizer, options.traces)
    zeros = np.zeros(engine.model.config.hidden_size, np.float32)
    step = StepInfo(Signals(0.1, 0.9, 0.9, 0.8), lambda layer: zeros)
    found: dict[str, float] = {}
    decisions: dict[str, int] = {}
    for name in list_policies():
        try:
            policy = make_policy(name).bind(BindContext(engine))
        except TerselyError as error:  # nothing was learned for this model
            print(f"{name} is left out: {error}", file=sys.stderr)
            continue
        found[name], decisions[name] = seconds(policy, traces, engine.tokenizer, step, CLOCKS[options.clock])
    tokens = sum(map(len, traces))
    if options.json:
        print(json.dumps({"traces": len(traces), "tokens": tokens, **{k: round(v, 3) for k, v in found.items()}}))
        return
    print(f"{len(traces)} traces, {tokens} tokens")
    for name, value in found.items():
        print(f"{name:16} {value:6.2f} s  {decisions[name]} decisions")


if __name__ == "__main__":
    main()
