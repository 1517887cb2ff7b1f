"""The far side of `deadline.Worker`: comparing, drawing and scoring, in a process that may be killed at any moment.

Run as a script, so that it starts without importing anything of ours; it reads one JSON request a line,
`[function, *arguments]`, and writes one JSON reply a line, `[value, error]`. It trusts no text it is given: some
scorers of reasoning-gym evaluate an answer as Python.
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
"""Bytes that one request may take on top of the libraries."""
_PLACES = 6
"""Decimal places, and digits of small numbers, that count where one side is a decimal fraction."""
_LEFT_OUT = {
    "codeio",  # runs code from the web to make its problems, and gives others each time
    "composite",  # is nothing without settings
}
_HARMFUL = (
    *("ctypes.", "os.chmod", "os.chown", "os.exec", "os.fork", "os.kill", "os.link", "os.mkdir", "os.posix_spawn"),
    *("os.remove", "os.rename", "os.rmdir", "os.spawn", "os.startfile", "os.symlink", "os.system", "os.truncate"),
    *("pty.", "shutil.", "socket.", "subprocess.", "webbrowser."),
)
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def compare(gold: str, answer: str) -> str:
    """Compare two LaTeX texts with math-verify: `equal`, `different`, or `unparsable` if the answer says nothing."""
    from math_verify import parse, verify

    # The timeouts are off because they rest on SIGALRM: the near side keeps the time.
    wanted, got = (parse(f"${text}$", parsing_timeout=None) for text in (gold, answer))
    if verify(wanted, got, float_rounding=_places(wanted), timeout_seconds=None):
        return "equal"
    return "unparsable" if all(isinstance(part, str) for part in got) else "different"


def _places(parsed: list[Any]) -> int:
    """Decimal places to compare: six digits of a number below 1, where six places would take 0.00199 for 2/1005."""
    try:
        size = abs(float(parsed[0]))
        return max(_PLACES, _PLACES - 1 - math.floor(math.log10(size)))
    except (IndexError, TypeError, ValueError, OverflowError):  # no number, or zero, or infinite
        return _PLACES


def names() -> list[str]:
    """The tasks of reasoning-gym that give the same problems for the same seed, with no further settings."""
    from reasoning_gym.factory import DATASETS

    return sorted(DATASETS.keys() - _LEFT_OUT)


def draw(name: str, seed: int, count: int) -> list[tuple[str, str, int | None, str]]:
    """The first `count` problems of a seed: question, gold answer (may be empty), level, and the entry to score with.

    Drawn one after another from a new generator: some keep state, so that one item alone would differ.
    """
    import reasoning_gym

    random.seed(seed)
    dataset = reasoning_gym.create_dataset(name, seed=seed, size=count)
    drawn = []
    for index in range(count):
        entry = dataset[index]
        packed = base64.b64encode(pickle.dumps(entry)).decode()
        drawn.append((str(entry["question"]), str(entry["answer"] or ""), level(entry["metadata"]), packed))
    return drawn


def level(metadata: dict[str, Any]) -> int | None:
    """1 to 5: where a problem lies within the ranges its generator drew from, averaged over those it names."""
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
    """What reasoning-gym's own `score_answer` gives for an answer to an entry that `draw` packed."""
    from reasoning_gym import get_score_answer_fn

    # Packed by this file in another process of ours; it never leaves the machine.
    return float(get_score_answer_fn(name)(answer, pickle.loads(base64.b64decode(packed))))


FUNCTIONS: dict[str, Callable[..., Any]] = {"compare": compare, "names": names, "draw": draw, "score": score}
_WARM_UP: dict[str, Callable[[], object]] = {"math_verify": lambda: compare("1", "2"), "reasoning_gym": names}


def _cap_memory() -> None:
    """Let a power tower fail by itself instead of filling the machine until the deadline; where the system can."""
    try:
        import resource

        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + _MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
    except (ImportError, OSError, ValueError):
        return


def _refuse(event: str, arguments: tuple[Any, ...]) -> None:
    """An audit hook: whatever an evaluated answer tries, it writes no file, starts no process, opens no connection."""
    writes = event == "open" and bool((arguments[2] or 0) & _WRITING)
    if writes or event.startswith(_HARMFUL):
        raise PermissionError(f"{event} is not allowed while answers are compared")


def _answer(request: list[Any]) -> list[Any]:
    function, seconds, *arguments = request
    if hasattr(signal, "alarm"):
        # Unhandled on purpose: the system ends this process even if nobody is left to kill it.
        signal.alarm(math.ceil(seconds) + 5)
    try:
        return [FUNCTIONS[function](*arguments), None]
    except Exception as error:  # whatever a library makes of a hostile text
        return [None, f"{type(error).__name__}: {error}"[:500]]
    finally:
        if hasattr(signal, "alarm"):
            signal.alarm(0)


def serve(library: str) -> None:
    """Import a library, say so, and answer requests until the near side closes its end."""
    replies = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)  # what libraries print must not be taken for a reply
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the near side's business
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
