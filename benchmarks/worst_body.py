"""How long others wait while hostile bodies arrive: the 99th percentile of a normal request, during and before.

One client asks normal requests one after the other. In every second block of ten, another sends hostile bodies of a
kind, one after the other without a pause; so both sides see the same load of the machine. The server, ours or vLLM's
under control, runs in a process of its own on the embedded model; the clients share a third. With the default number of
requests a kind takes about 20 seconds on two idle cores; progress is on standard error.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import statistics
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from gateway import running
from measuring import make_parser, print_figures

MODEL = "tersely-tiny-small"
QUESTION = "Mia has 48 shells. Mia finds 31 more shells. Mia gives away 26 shells. How many shells does Mia have now?"
SIZE, BLOCK = 4 << 20, 10
PATIENCE = 10.0  # seconds for the last hostile body of a block to be answered, before its client leaves
ENGINES = {
    "transformers": ["--log", "off"],
    "vllm": "--engine vllm --enforce-eager --max-model-len 1024 --block-size 32 --dtype float32 "
    "--gpu-memory-utilization 0.3".split(),
}
"""Flags of `tersely serve` by engine; those of vLLM let it start on a small CPU."""
HEAD = f'{{"model":"{MODEL}","max_tokens":4,"messages":['
ASKED = f'{HEAD}{{"role":"user","content":"1 + 1"}}]'


def bodies() -> dict[str, bytes]:
    """A body of each kind: as large as the server takes, or with as many values as it checks."""
    parts = {
        "messages": (HEAD, "1,", "1]}"),
        "a long prompt": (f'{HEAD}{{"role":"user","content":"', "hello ", '"}]}'),
        "escapes": (f'{HEAD}{{"role":"user","content":"', "\\n", '"}]}'),
        "metadata": (f'{ASKED},"metadata":{{"a":[', "[],", "1]}}"),
        "text in metadata": (f'{ASKED},"metadata":{{"a":"', "x", '"}}'),
        "empty texts": (f'{ASKED},"metadata":{{', '"":"",', '"":""}}'),
    }
    filled = {
        name: before + item * ((SIZE - len(before + after)) // len(item)) + after
        for name, (before, item, after) in parts.items()
    }
    filled["as many values as may be"] = f"{HEAD}{'1,' * 19_000}1]}}"
    filled["unknown fields"] = ASKED + "".join(f',"k{n}":1' for n in range(9_000)) + "}"
    filled["messages that are valid"] = (
        HEAD + '{"role":"user","content":"1"},' * 3_000 + '{"role":"user","content":""}]}'
    )
    return {name: text.encode() for name, text in filled.items()}


def post(connection: http.client.HTTPConnection, body: bytes) -> int:
    """Send a body and read the reply; returns its status."""
    connection.request("POST", "/v1/chat/completions", body, {"content-type": "application/json"})
    response = connection.getresponse()
    response.read()
    return response.status


def ask(port: int, count: int) -> list[float]:
    """Seconds of so many normal requests."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 64, "seed": 1}
    connection, taken = http.client.HTTPConnection("127.0.0.1", port), []
    for _ in range(count):
        began = time.perf_counter()
        status = post(connection, json.dumps(body).encode())
        taken.append(time.perf_counter() - began)
        if status != 200:
            raise SystemExit(f"a normal request was answered by status {status}")
    connection.close()
    return taken


@contextmanager
def attacked(port: int, body: bytes, statuses: list[int]) -> Iterator[None]:
    """Keep sending a body while the context lasts."""
    ended, connection = threading.Event(), http.client.HTTPConnection("127.0.0.1", port)

    def send() -> None:
        while not ended.is_set():
            try:
                statuses.append(post(connection, body))
            except (http.client.HTTPException, OSError):  # refused before it was read to its end
                connection.close()

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(PATIENCE)
        with suppress(AttributeError, OSError):  # there is no socket between two requests
            connection.sock.shutdown(socket.SHUT_RDWR)
        thread.join()


def main(argv: list[str] | None = None) -> None:
    """Measure every kind and print the percentiles."""
    parser = make_parser(__doc__)
    parser.add_argument("--engine", choices=list(ENGINES), default="transformers", help="(default: %(default)s)")
    parser.add_argument("--requests", type=int, default=100, help="normal ones on each side (default: %(default)s)")
    parser.add_argument("--kinds", help="kinds of bodies, separated by commas (default: all)")
    options = parser.parse_args(argv)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    kinds = bodies()
    figures: dict[str, Any] = {}
    chosen = options.kinds.split(",") if options.kinds else list(kinds)
    if unknown := set(chosen) - set(kinds):
        raise SystemExit(f"unknown kinds {', '.join(unknown)}; accepted: {', '.join(kinds)}")
    with running("-m", "tersely.cli", "serve", MODEL, *ENGINES[options.engine]) as url:
        port = int(url.rpartition(":")[2])
        ask(port, BLOCK)
        for number, name in enumerate(chosen, 1):
            began = time.monotonic()
            before: list[float] = []
            during: list[float] = []
            statuses: list[int] = []
            while len(during) < options.requests:
                before += ask(port, BLOCK)
                with attacked(port, kinds[name], statuses):
                    during += ask(port, BLOCK)
            figures[name] = compare(before, during) | {"sent": len(statuses), "statuses": sorted(set(statuses))}
            spent, figure = time.monotonic() - began, figures[name]
            print(f"{number}/{len(chosen)} {name}, {spent:.0f} s: {figure}", file=sys.stderr, flush=True)
    figures["worst"] = max(figures, key=lambda name: float(figures[name]["ratio"]))
    print_figures(figures, options.json)


def compare(before: list[float], during: list[float]) -> dict[str, Any]:
    """Medians and 99th percentiles in seconds, and the ratio of the latter."""
    percentiles = [statistics.quantiles(side, n=100)[98] for side in (before, during)]
    return {
        "median": [round(statistics.median(side), 4) for side in (before, during)],
        "p99": [round(value, 4) for value in percentiles],
        "ratio": round(percentiles[1] / percentiles[0], 2),
    }


if __name__ == "__main__":
    main()
