"""What `tersely serve --upstream` adds to the server behind it: time to the first token, and throughput.

Both sides answer the same greedy requests, in turns: the server itself, the gateway with preset `off`, and with
`budget` in shadow mode, where a controller reads every token and does not act. `first_token` is the median of single
requests in milliseconds; `throughput` the server's seconds over the gateway's, at the same output, with many at once.

An embedded model writes a token in less time than a server needs to send it. `--wider N` makes its layers N times as
wide, with random weights, as in models that people serve; `parameters` says how many weights the measured model has.
`--own-core` leaves the first core to the model alone, as a GPU does; servers, gateway and client share the others.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
from measuring import make_parser, print_figures

QUESTION = "Mia has {a} shells. Mia finds {b} more shells. Mia gives away 26 shells. How many shells does Mia have now?"
NAME = "benchmarked"
FIRST = 16  # tokens of a request that only times its first one
START = 300.0  # seconds that a server may take
VLLM = ("-m", "vllm.entrypoints.openai.api_server")
SMALL = ("--enforce-eager", "--dtype", "float32", "--max-model-len", "1024", "--gpu-memory-utilization", "0.3")


def widen(model: str, times: int, folder: str) -> str:
    """Write a model of wider layers with random weights, which never ends by itself; returns its folder."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    config = AutoConfig.from_pretrained(model)
    for name in ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads"):
        setattr(config, name, getattr(config, name) * times)
    config.eos_token_id = None
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(model).save_pretrained(folder)
    return folder


def count_parameters(model: str) -> int:
    """The weights of a checkpoint."""
    from safetensors import safe_open

    count = 0
    for file in Path(model).glob("*.safetensors"):
        with safe_open(file, "pt") as weights:
            names = weights.keys()
            count += sum(math.prod(weights.get_slice(name).get_shape()) for name in names)
    return count


@contextmanager
def running(*command: str) -> Iterator[str]:
    """A server of this command while the context lasts; yields its URL."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    with subprocess.Popen([sys.executable, *command, "--port", str(port)], stdout=sys.stderr) as process:
        try:
            end, up = time.monotonic() + START, False
            while not up:
                with suppress(httpx.TransportError):
                    up = httpx.get(f"{url}/health").is_success
                if process.poll() is not None or time.monotonic() > end:
                    raise SystemExit(f"the server has not started: {' '.join(command)}")
                time.sleep(0.0 if up else 0.5)
            yield url
        finally:
            process.terminate()


async def ask(http: httpx.AsyncClient, number: int, limit: int, fields: dict[str, Any]) -> tuple[float, int]:
    """Seconds to the first token of a streamed reply, and how many tokens it has."""
    question = QUESTION.format(a=40 + number % 50, b=20 + number % 40)
    body = {"model": NAME, "messages": [{"role": "user", "content": question}], "temperature": 0, "max_tokens": limit}
    body |= {"stream": True, "stream_options": {"include_usage": True}, **fields}
    start, first, tokens = time.perf_counter(), 0.0, 0
    async with http.stream("POST", "/v1/chat/completions", json=body) as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            if not line.startswith("data: {"):
                continue
            event = json.loads(line.removeprefix("data: "))
            delta = event["choices"][0]["delta"] if event["choices"] else {}
            if not first and any(delta.get(name) for name in ("content", "reasoning", "reasoning_content")):
                first = time.perf_counter() - start
            tokens = (event.get("usage") or {}).get("completion_tokens", tokens)
    return first, tokens


async def measure(sides: dict[str, tuple[str, dict[str, Any]]], rounds: int, rows: int, limit: int) -> dict[str, Any]:
    """Figures of all sides, whose turns alternate."""
    first: dict[str, list[float]] = {side: [] for side in sides}
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    tokens: dict[str, int] = {}
    limits = httpx.Limits(max_connections=None)
    async with AsyncExitStack() as stack:
        clients = {
            side: await stack.enter_async_context(httpx.AsyncClient(base_url=url, timeout=None, limits=limits))
            for side, (url, _) in sides.items()
        }
        for turn in range(-1, rounds):  # the first one warms up
            for side, (_, fields) in sides.items():
                delays = [(await ask(clients[side], number, FIRST, fields))[0] for number in range(4)]
                start = time.perf_counter()
                replies = await asyncio.gather(*(ask(clients[side], number, limit, fields) for number in range(rows)))
                if turn >= 0:
                    first[side] += delays
                    seconds[side].append(time.perf_counter() - start)
                    tokens[side] = sum(size for _, size in replies)
    base = next(iter(sides))
    figures: dict[str, Any] = {
        f"{side}_first_token_ms": round(1e3 * statistics.median(first[side]), 2) for side in sides
    }
    for side in list(sides)[1:]:
        ratios = [mine / ours for mine, ours in zip(seconds[base], seconds[side], strict=True)]
        figures[f"{side}_added_ms"] = round(figures[f"{side}_first_token_ms"] - figures[f"{base}_first_token_ms"], 2)
        figures[f"{side}_throughput"] = round(statistics.median(ratios) * tokens[side] / tokens[base], 3)
    return figures | {"tokens": tokens}


def main(argv: list[str] | None = None) -> None:
    """Measure and print."""
    parser = make_parser(__doc__)
    parser.add_argument(
        "--model", default="tersely-tiny-large", help="an embedded model or a folder (default: %(default)s)"
    )
    parser.add_argument("--wider", type=int, default=1, metavar="N", help="widen its layers (default: %(default)s)")
    parser.add_argument("--own-core", action="store_true", help="leave the first core to the model")
    parser.add_argument("--rows", type=int, default=16, help="requests at once (default: %(default)s)")
    parser.add_argument("--max-tokens", type=int, default=400, help="tokens of a reply (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=8, help="turns of each side (default: %(default)s)")
    options = parser.parse_args(argv)
    os.environ.update(HF_HUB_OFFLINE="1", VLLM_CPU_CI_ENV="1", VLLM_LOGGING_LEVEL="ERROR")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    if options.own_core:
        first, *others = sorted(os.sched_getaffinity(0))
        if not others:
            raise SystemExit("--own-core needs at least two cores")
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = str(first)
        os.sched_setaffinity(0, others)
    from tersely.models import get_model_path

    model = options.model if Path(options.model).is_dir() else str(get_model_path(options.model))
    with ExitStack() as stack:
        if options.wider > 1:
            model = widen(model, options.wider, stack.enter_context(TemporaryDirectory()))
        bare = stack.enter_context(running(*VLLM, "--model", model, "--served-model-name", NAME, *SMALL))
        gateway = ("-m", "tersely.cli", "serve", "--upstream", bare, "--tokenizer", model, "--log", "off")
        url = stack.enter_context(running(*gateway))
        sides: dict[str, tuple[str, dict[str, Any]]] = {
            "bare": (bare, {}),
            "off": (url, {"tersely": {"preset": "off"}}),
            "budget": (url, {"tersely": {"preset": "budget", "shadow": True}}),
        }
        figures = asyncio.run(measure(sides, options.rounds, options.rows, options.max_tokens))
        figures |= {"model": options.model, "wider": options.wider, "parameters": count_parameters(model)}
    print_figures(figures, options.json)


if __name__ == "__main__":
    main()
