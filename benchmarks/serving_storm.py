"""Load test: many clients at once on one server, some of which disconnect. Is everyone answered, does anything leak?

Outcomes: `answered`; `left` disconnected on purpose; `refused` got 503; `unanswered` got no answer; `broken` lost the
connection; `hung` got neither an answer nor an end in time. Memory and threads of the idle server are compared before
and after, following a first load of the same size that fills its caches. Memory is measured on Linux only.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

QUESTION = "Mia has 48 shells. Mia finds 31 more shells. Mia gives away 26 shells. How many shells does Mia have now?"
FIELDS: tuple[dict[str, Any], ...] = (
    {},
    {"reasoning_effort": "none"},
    {"reasoning_effort": "low"},
    {"reasoning_effort": "auto"},
    {"temperature": 0},
    {"n": 2},
    {"stop": ["boxed"]},
    {"thinking_token_budget": 60},
)
OUTCOMES = ("answered", "left", "refused", "unanswered", "broken", "hung")
SERVE = (sys.executable, "-m", "tersely.cli", "serve")


async def ask(http: httpx.AsyncClient, model: str, draw: random.Random, leaving: float) -> str:
    """Send one random request and return its outcome."""
    stream, leaves, after = draw.random() < 0.5, draw.random() < leaving, draw.random()
    limit = draw.choice((40, 90, 150))
    messages = [{"role": "user", "content": QUESTION}]
    body = {"model": model, "messages": messages, "max_tokens": limit, "stream": stream, **draw.choice(FIELDS)}
    wait = httpx.Timeout(None, read=after) if leaves and not stream else None
    try:
        async with http.stream("POST", "/v1/chat/completions", json=body, timeout=wait) as response:
            if response.status_code != 200:
                await response.aread()
                return "refused" if response.status_code == 503 else "unanswered"
            text = ""
            async for line in response.aiter_lines():
                text += f"{line}\n"
                if leaves and stream and len(text) > 4000 * after:
                    return "left"
    except httpx.ReadTimeout:
        return "left"
    except httpx.TransportError as error:
        print(f"broken: {error!r} {body}", file=sys.stderr)
        return "broken"
    return "answered" if (_stream_has_answers(text) if stream else _has_answers(text)) else "unanswered"


def _has_answers(text: str) -> bool:
    return all(choice["message"]["content"] for choice in json.loads(text)["choices"])


def _stream_has_answers(text: str) -> bool:
    *events, done, _, _ = text.split("\n")
    chunks = [json.loads(line.removeprefix("data: ")) for line in events if line]
    answered = {c["choices"][0]["index"] for c in chunks if c["choices"] and c["choices"][0]["delta"].get("content")}
    ended = {c["choices"][0]["index"] for c in chunks if c["choices"] and c["choices"][0]["finish_reason"]}
    return done == "data: [DONE]" and bool(answered) and answered == ended


async def storm(url: str, count: int, seed: int, leaving: float, patience: float) -> Counter[str]:
    """Send requests at once to the server's only model and count the outcomes."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=None, limits=limits) as http:
        model = (await http.get("/v1/models")).json()["data"][0]["id"]

        async def ask_in_time(number: int) -> str:
            try:
                draw = random.Random(f"{seed}:{number}")
                return await asyncio.wait_for(ask(http, model, draw, leaving), patience)
            except TimeoutError:
                return "hung"

        return Counter(await asyncio.gather(*(ask_in_time(number) for number in range(count))))


@contextmanager
def server(*arguments: str) -> Iterator[tuple[str, int]]:
    """A server in its own processes: its URL and process id."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    url = f"http://127.0.0.1:{port}"
    with subprocess.Popen([*SERVE, *arguments, "--port", port], stdout=sys.stderr, start_new_session=True) as running:
        try:
            while True:
                with contextlib.suppress(httpx.TransportError):
                    if httpx.get(f"{url}/health").is_success:
                        break
                if running.poll() is not None:
                    raise SystemExit("the server ended during startup")
                time.sleep(0.5)
            yield url, running.pid
        finally:
            os.killpg(running.pid, signal.SIGTERM)


def wait_until_idle(url: str, pid: int) -> dict[str, float]:
    """Threads, resident memory (MiB) and KV cache in use (per cent) of an idle server, as far as they are known."""
    while True:
        text = httpx.get(f"{url}/metrics").text
        busy = [
            line for line in text.splitlines() if line.startswith("vllm:num_requests_") and not line.endswith(" 0.0")
        ]
        if "tersely_requests_in_flight 0.0" in text and not busy:
            break
        time.sleep(0.1)
    cache = [float(line.split()[-1]) * 100 for line in text.splitlines() if line.startswith("vllm:kv_cache_usage_perc")]
    figures = {"cache": sum(cache)} if cache else {}
    if not Path(f"/proc/{pid}/status").exists():
        return figures
    statuses = [_status(one) for one in process_tree(pid)]
    return {
        **figures,
        "threads": sum(float(status["Threads"]) for status in statuses),
        "memory": sum(int(status.get("VmRSS", "0").split()[0]) for status in statuses) / 1024,
    }


def _status(pid: int) -> dict[str, str]:
    return dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())


def process_tree(pid: int) -> list[int]:
    """A process and its descendants."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    children = [int(child) for task in tasks for child in (task / "children").read_text().split()]
    return [pid, *(one for child in children for one in process_tree(child))]


def main(argv: list[str] | None = None) -> None:
    """Run the load test and print the outcomes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tersely-tiny-small", help="name or folder (default: %(default)s)")
    parser.add_argument("--engine", choices=("transformers", "vllm"), default="transformers")
    parser.add_argument("--requests", type=int, default=1000, help="simultaneous requests (default: %(default)s)")
    parser.add_argument(
        "--leaving", type=float, default=0.3, help="share of clients that disconnect (default: %(default)s)"
    )
    parser.add_argument("--batch", type=int, default=32, help="sequences decoded at once (default: %(default)s)")
    parser.add_argument(
        "--patience", type=float, default=600.0, help="seconds that a client waits (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the requests (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(argv)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if options.engine == "vllm":
        os.environ.update(VLLM_CPU_CI_ENV="1", VLLM_LOGGING_LEVEL="ERROR")
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
        flags = ["--engine", "vllm", "--max-num-seqs", str(options.batch), "--max-model-len", "1024"]
        flags += [
            "--dtype",
            "float32",
            "--enforce-eager",
            "--gpu-memory-utilization",
            "0.3",
            "--uvicorn-log-level",
            "error",
        ]
    else:
        flags = ["--batch-size", str(options.batch), "--max-waiting", str(2 * options.requests)]
    with server(options.model, *flags) as (url, pid):
        asyncio.run(storm(url, options.requests, options.seed + 1, options.leaving, options.patience))
        before, start = wait_until_idle(url, pid), time.monotonic()
        outcomes = asyncio.run(storm(url, options.requests, options.seed, options.leaving, options.patience))
        seconds, after = time.monotonic() - start, wait_until_idle(url, pid)
    figures: dict[str, float] = {"requests": options.requests, **{kind: outcomes[kind] for kind in OUTCOMES}}
    figures["seconds"] = round(seconds, 1)
    figures |= {f"{name}_growth": round(after[name] - value, 1) for name, value in before.items()}
    if options.json:
        print(json.dumps(figures))
        return
    for name, value in figures.items():
        print(f"{name:16}{value:10g}")


if __name__ == "__main__":
    main()
