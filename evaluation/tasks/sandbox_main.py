"""The child process of `sandbox.SandboxProcess`: generates problems, and has a fork of itself compare and score.

It runs as a script, without our modules. It reads JSON requests, `[function, seconds, *arguments]`, and writes replies,
`[outcome, value]`, a line each. Scorers of reasoning-gym evaluate answers as Python, which `confinement` prevents. A
fork that takes too long is killed; the next one has what was imported and drawn before, so each deadline holds.
"""

from __future__ import annotations

import copy
import gc
import json
import math
import os
import random
import runpy
import select
import signal
import sys
import time
from collections.abc import Callable
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

_PLACES = 6
"""Decimal places, or significant digits of small numbers, that are compared if one side is a decimal fraction."""
_EXCLUDED = {
    "codeio",  # runs code from the web to make its problems, and makes others each time
    "composite",  # needs settings
    "game_of_life_halting",  # its scorer takes any answer for right
}
BATCH = 50  # problems drawn from one seed
_KEPT = 256  # batches that are kept for scoring; the slowest generators need 20 seconds for one
_REPLIES = 3  # file descriptor of the fork's replies


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


@cache
def _scorer(name: str) -> Callable[[str, dict[str, Any]], float]:
    """What scores a task's answers; kept, because some take a third of a second to make."""
    from reasoning_gym import get_score_answer_fn

    return get_score_answer_fn(name)  # type: ignore[no-any-return]


def prepare(name: str, seed: int) -> int:
    """Draw the problems of a seed for `score`; returns how many there are."""
    _scorer(name)
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
    return float(_scorer(name)(answer, copy.deepcopy(_entries(name, seed)[index])))


FUNCTIONS: dict[str, Callable[..., Any]] = {
    function.__name__: function for function in (compare, names, draw, prepare, score)
}
_GRADING = (compare.__name__, score.__name__)


def _warm_up(library: str) -> None:
    """Import a library, with the parts that it loads when they are first used: each fork would load them again."""
    if library == "math_verify":
        for gold, answer in ((r"\frac{x^2}{3}", r"\sqrt{2}y+1"), ("x>2", r"(2,\infty)")):
            compare(gold, answer)
    elif library == "reasoning_gym":
        names()
    else:
        raise ValueError("unknown library")
    gc.collect()
    gc.freeze()  # a collection in a fork would copy all memory


def _answer(line: bytes) -> bytes:
    function, seconds, *arguments = json.loads(line)
    if hasattr(signal, "alarm"):
        # Unhandled on purpose: the system ends this process even if its parent is gone.
        signal.alarm(math.ceil(seconds) + 5)
    try:
        return _encode("value", FUNCTIONS[function](*arguments))
    except Exception as error:  # a library may raise anything on hostile text
        return _encode("error", f"{type(error).__name__}: {error}"[:500])
    finally:
        if hasattr(signal, "alarm"):
            signal.alarm(0)


def _encode(outcome: str, value: Any = None) -> bytes:
    return json.dumps([outcome, value]).encode("ascii") + b"\n"


class Grader:
    """A fork of this process that grades one answer after the other, until it is late, or problems were drawn since."""

    def __init__(self, confine: Callable[[], None]) -> None:
        self._confine = confine
        self._pid = self._drawn = -1
        self._pipes: tuple[int, ...] = ()
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # no one waits for its end, since freeing 2 GB takes a while

    def answer(self, line: bytes) -> bytes:
        if not self._pipes or self._drawn != _entries.cache_info().misses:
            self._end()
            self._start()
        requests, replies = self._pipes
        until, reply = time.monotonic() + json.loads(line)[1], b""
        try:
            os.write(requests, line)
            while not reply.endswith(b"\n"):
                if not select.select([replies], [], [], max(0.0, until - time.monotonic()))[0]:
                    os.kill(self._pid, signal.SIGKILL)
                    self._end()
                    return _encode("late")
                if not (part := os.read(replies, 1 << 16)):
                    raise BrokenPipeError
                reply += part
        except OSError:  # it has ended by itself
            self._end()
            return _encode("crash")
        return reply

    def _start(self) -> None:
        requests, replies = os.pipe(), os.pipe()
        self._pid = os.fork()
        if not self._pid:
            try:
                os.dup2(requests[0], 0)
                os.dup2(replies[1], _REPLIES)
                os.closerange(_REPLIES + 1, 1024)  # nothing of this process's connection to its parent is left
                lines = os.fdopen(0, "rb")
                self._confine()
                for line in lines:
                    os.write(_REPLIES, _answer(line))
            finally:
                os._exit(0)
        os.close(requests[0])
        os.close(replies[1])
        self._pipes, self._drawn = (requests[1], replies[0]), _entries.cache_info().misses

    def _end(self) -> None:
        """Let go of the fork, which ends where it waits for a request."""
        for pipe in self._pipes:
            os.close(pipe)
        self._pipes = ()


def serve(library: str) -> None:
    """Import a library, report that it is ready, and answer requests until the parent closes its end."""
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print must not be read as a reply
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    grade = _answer
    try:
        _warm_up(library)
        confinement = runpy.run_path(str(Path(__file__).with_name("confinement.py")))
        confinement["confine"]([library])
        if hasattr(os, "fork"):
            grade = Grader(confinement["forbid_all_else"]).answer
        else:
            confinement["forbid_all_else"]()
        ready = _encode("value")
    except Exception as error:
        ready = _encode("error", f"{type(error).__name__}: {error}")
    replies.write(ready)
    replies.flush()
    for line in sys.stdin.buffer:
        replies.write(grade(line) if json.loads(line)[0] in _GRADING else _answer(line))
        replies.flush()


if __name__ == "__main__":
    serve(sys.argv[1])
