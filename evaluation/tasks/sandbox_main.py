"""The child process of `sandbox.SandboxProcess`: compares, generates and scores; it may be killed at any moment.

It runs as a script, without our modules. It reads JSON requests, `[function, seconds, *arguments]`, and writes replies,
`[value, error]`, a line each. Scorers of reasoning-gym evaluate answers as Python, which `confinement` prevents.
"""

from __future__ import annotations

import copy
import json
import math
import os
import random
import runpy
import signal
import sys
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

_PLACES = 6
"""Decimal places, or significant digits of small numbers, that are compared if one side is a decimal fraction."""
_EXCLUDED = {
    "codeio",  # runs code from the web to make its problems, and makes others each time
    "composite",  # needs settings
}
BATCH = 50  # problems drawn from one seed
_KEPT = 64  # batches that are kept for scoring


def compare(gold: str, answer: str) -> str:
    """Compare two LaTeX texts with math-verify: `equal`, `different`, or `unparsable` if the answer has no content."""
    from math_verify import parse, verify

    # Its timeouts use SIGALRM and are off: the parent process keeps the time.
    wanted, got = (parse(f"${text}$", parsing_timeout=None) for text in (gold, answer))
    if verify(wanted, got, float_rounding=_places(wanted), timeout_seconds=None):
        return "equal"
    return "unparsable" if all(isinstance(part, str) for part in got) else "different"


def _places(parsed: list[Any]) -> int:
    """Decimal places to compare: six significant digits below 1, where six places would equate 0.00199 and 2/1005."""
    try:
        size = abs(float(parsed[0]))
        return max(_PLACES, _PLACES - 1 - math.floor(math.log10(size)))
    except (IndexError, TypeError, ValueError, OverflowError):  # not a number, zero, or infinite
        return _PLACES


def names() -> list[str]:
    """Tasks of reasoning-gym that are deterministic in the seed and need no settings."""
    from reasoning_gym.factory import DATASETS

    return sorted(DATASETS.keys() - _EXCLUDED)


@lru_cache(maxsize=_KEPT)
def _entries(name: str, seed: int) -> list[dict[str, Any]]:
    """A batch of a seed, generated in order by a new generator, because some generators keep state."""
    import reasoning_gym

    random.seed(seed)
    dataset = reasoning_gym.create_dataset(name, seed=seed, size=BATCH)
    return [dataset[index] for index in range(BATCH)]


def draw(name: str, seed: int) -> list[tuple[str, str, int | None]]:
    """The problems of a seed: question, gold answer (may be empty), and level."""
    return [
        (str(entry["question"]), str(entry["answer"] or ""), level(entry["metadata"])) for entry in _entries(name, seed)
    ]


def prepare(name: str, seed: int) -> int:
    """Draw the problems of a seed for `score`; returns how many there are."""
    return len(_entries(name, seed))


def level(metadata: dict[str, Any]) -> int | None:
    """Difficulty from 1 to 5: a problem's mean position within the ranges that its generator drew from."""
    ranges = metadata.get("difficulty")
    shares = []
    for key, span in ranges.items() if isinstance(ranges, dict) else ():
        value = metadata.get(key)
        if not isinstance(span, tuple | list) or len(span) != 2 or isinstance(value, bool):
            continue
        if all(isinstance(x, int | float) for x in (*span, value)) and span[0] < span[1]:
            shares.append((value - span[0]) / (span[1] - span[0]))
    if not shares:
        return None
    return min(5, max(1, 1 + int(5 * sum(shares) / len(shares))))


def score(name: str, seed: int, index: int, answer: str) -> float:
    """The score that reasoning-gym's own `score_answer` gives an answer to a problem of a seed."""
    from reasoning_gym import get_score_answer_fn

    return float(get_score_answer_fn(name)(answer, copy.deepcopy(_entries(name, seed)[index])))


FUNCTIONS: dict[str, Callable[..., Any]] = {
    function.__name__: function for function in (compare, names, draw, prepare, score)
}
_WARM_UP: dict[str, Callable[[], object]] = {"math_verify": lambda: compare("1", "2"), "reasoning_gym": names}


def _answer(request: list[Any]) -> list[Any]:
    function, seconds, *arguments = request
    if hasattr(signal, "alarm"):
        # Unhandled on purpose: the system ends this process even if its parent is gone.
        signal.alarm(math.ceil(seconds) + 5)
    try:
        return [FUNCTIONS[function](*arguments), None]
    except Exception as error:  # a library may raise anything on hostile text
        return [None, f"{type(error).__name__}: {error}"[:500]]
    finally:
        if hasattr(signal, "alarm"):
            signal.alarm(0)


def serve(library: str) -> None:
    """Import a library, report that it is ready, and answer requests until the parent closes its end."""
    replies = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)  # what libraries print must not be read as a reply
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    try:
        _WARM_UP[library]()
        runpy.run_path(str(Path(__file__).with_name("confinement.py")))["confine"]([library])
        ready: list[Any] = [True, None]
    except Exception as error:
        ready = [None, f"{type(error).__name__}: {error}"]
    print(json.dumps(ready), file=replies, flush=True)
    for line in sys.stdin.buffer:
        print(json.dumps(_answer(json.loads(line))), file=replies, flush=True)


if __name__ == "__main__":
    serve(sys.argv[1])
