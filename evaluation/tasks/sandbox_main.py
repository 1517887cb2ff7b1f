"""The child process of `sandbox.SandboxProcess`: compares, generates and scores; it may be killed at any moment.

It runs as a script, so that it starts without importing any of our modules. It reads one JSON request per line,
`[function, seconds, *arguments]`, and writes one JSON reply per line, `[value, error]`. It trusts no text that it
gets: some scorers of reasoning-gym evaluate an answer as Python.
"""

from __future__ import annotations

import base64
import json
import math
import os
import pickle
import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

_MEMORY = 2 * 2**30
"""Bytes of memory that one request may use in addition to the libraries."""
_PLACES = 6
"""Decimal places, or significant digits of small numbers, that are compared if one side is a decimal fraction."""
_EXCLUDED = {
    "codeio",  # runs code from the web to make its problems, and makes others each time
    "composite",  # needs settings
}
_HARMFUL_EVENTS = (
    *("ctypes.", "os.chmod", "os.chown", "os.exec", "os.fork", "os.kill", "os.link", "os.mkdir", "os.posix_spawn"),
    *("os.remove", "os.rename", "os.rmdir", "os.spawn", "os.startfile", "os.symlink", "os.system", "os.truncate"),
    *("pty.", "shutil.", "socket.", "subprocess.", "webbrowser."),
)
_WRITE_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


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


def draw(name: str, seed: int, count: int) -> list[tuple[str, str, int | None, str]]:
    """The first `count` problems of a seed: question, gold answer (may be empty), level, and packed entry for scoring.

    They are generated in order by a new generator, because some generators keep state.
    """
    import reasoning_gym

    random.seed(seed)
    dataset = reasoning_gym.create_dataset(name, seed=seed, size=count)
    problems = []
    for index in range(count):
        entry = dataset[index]
        packed = base64.b64encode(pickle.dumps(entry)).decode()
        problems.append((str(entry["question"]), str(entry["answer"] or ""), level(entry["metadata"]), packed))
    return problems


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


def score(name: str, packed: str, answer: str) -> float:
    """The score that reasoning-gym's own `score_answer` gives an answer to an entry packed by `draw`."""
    from reasoning_gym import get_score_answer_fn

    # Packed by this script in another sandbox process; it never leaves the machine.
    return float(get_score_answer_fn(name)(answer, pickle.loads(base64.b64decode(packed))))


FUNCTIONS: dict[str, Callable[..., Any]] = {"compare": compare, "names": names, "draw": draw, "score": score}
_WARM_UP: dict[str, Callable[[], object]] = {"math_verify": lambda: compare("1", "2"), "reasoning_gym": names}


def _cap_memory() -> None:
    """Limit memory where the system can, so that a power tower fails instead of filling the machine."""
    try:
        import resource

        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + _MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
    except (ImportError, OSError, ValueError):
        return


def _refuse(event: str, arguments: tuple[Any, ...]) -> None:
    """Audit hook that stops evaluated answers from writing files, starting processes and opening connections."""
    writes = event == "open" and bool((arguments[2] or 0) & _WRITE_FLAGS)
    if writes or event.startswith(_HARMFUL_EVENTS):
        raise PermissionError(f"{event} is not allowed in the sandbox")


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
        ready: list[Any] = [True, None]
    except Exception as error:
        ready = [None, f"{type(error).__name__}: {error}"]
    print(json.dumps(ready), file=replies, flush=True)
    _cap_memory()
    sys.addaudithook(_refuse)
    for line in sys.stdin.buffer:
        print(json.dumps(_answer(json.loads(line))), file=replies, flush=True)


if __name__ == "__main__":
    serve(sys.argv[1])
