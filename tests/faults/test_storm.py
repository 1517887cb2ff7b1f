"""Thousands of fuzzed requests: none is answered by an internal error, none hangs, and memory does not grow."""

from __future__ import annotations

import asyncio
import gc
import json
import statistics
import time
from pathlib import Path
from random import Random
from typing import Any

import httpx
import pytest

from tersely.controller.engines.transformers.engine import load_engine
from tersely.controller.serving.settings import ServerLimits, ServerSettings

from ..support.serving import MODEL, Served, body, served, until
from .test_bodies import HOSTILE

VALUES: list[Any] = [
    *(None, True, False, 0, -1, 1, 2**63, 1e308, 1e-320, 0.5, "", "x", "low", "none", "\u2028", "<think>", MODEL),
    *([], {}, [1], ["budget"], [[]], {"type": "text", "text": "1 + 1"}, {"role": "user", "content": "1 + 1"}),
    *([{"role": "user", "content": "1 + 1"}], {"preset": "fast"}, {"policies": ["hint", "budget"]}, "x" * 9_000),
]
FIELDS = (
    "model messages stream temperature top_p top_k seed n stop max_tokens max_completion_tokens reasoning_effort "
    "tersely thinking thinking_token_budget chat_template_kwargs response_format tools tool_choice metadata user input "
    "text reasoning instructions max_output_tokens logit_bias stream_options colour"
).split()


def fuzzed(rng: Random) -> tuple[str, bytes]:
    """A path and a body: valid but for some fields, with some bytes flipped now and then."""
    path = rng.choice(["/v1/chat/completions", "/v1/chat/completions", "/v1/responses"])
    start: dict[str, Any] = {"model": MODEL, "input": "1 + 1"} if path.endswith("responses") else body("1 + 1")
    start |= {"max_output_tokens" if path.endswith("responses") else "max_tokens": 4}
    for _ in range(rng.randint(0, 4)):
        start[rng.choice(FIELDS)] = rng.choice(VALUES)
    content = bytearray(json.dumps(start).encode())
    for _ in range(rng.choice([0, 0, 0, 1, 4])):
        content[rng.randrange(len(content))] = rng.randrange(256)
    return path, bytes(content)


def resident() -> int:
    """Pages of memory."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1])


async def storm(url: str, count: int, seed: int) -> list[int]:
    """The statuses of so many requests, 32 at a time; some clients leave early, for which it is 0."""
    rng = Random(seed)
    limits = httpx.Limits(max_connections=32)

    async def one(http: httpx.AsyncClient, path: str, content: bytes, patience: float) -> int:
        try:
            async with asyncio.timeout(patience):
                reply = await http.post(path, content=content, headers={"content-type": "application/json"})
            return int(reply.status_code)
        except TimeoutError:
            return 0

    async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as http:
        asked = [(*fuzzed(rng), rng.choice([120, 120, 120, 0.05])) for _ in range(count)]
        return await asyncio.gather(*(one(http, *request) for request in asked))


def check_storm(server: Served, count: int) -> None:
    asyncio.run(storm(server.url, 200, 1))  # what is loaded once
    until(lambda: server.worker.idle)
    before = resident()
    statuses = asyncio.run(storm(server.url, count, 2))
    until(lambda: server.worker.idle)
    assert {status for status in statuses if status >= 500} <= {503}
    assert statuses.count(200) > count // 20 and statuses.count(400) > count // 5
    assert resident() < 1.2 * before
    until(lambda: server.metrics()["tersely_requests_in_flight"] == 0)


@pytest.mark.slow
def test_some_fuzzed_requests() -> None:
    with served(load_engine(MODEL), ServerSettings(MODEL, limits=ServerLimits(tokens=64, waiting=2_000))) as server:
        check_storm(server, 400)


@pytest.mark.attack
def test_ten_thousand_fuzzed_requests() -> None:
    with served(load_engine(MODEL), ServerSettings(MODEL, limits=ServerLimits(tokens=64, waiting=20_000))) as server:
        check_storm(server, 10_000)


@pytest.mark.attack
@pytest.mark.parametrize("kind", HOSTILE)
def test_others_hardly_wait_for_the_worst_bodies(kind: str) -> None:
    """The 99th of 100 times of a normal request, while hostile bodies arrive one after the other, and before."""

    def times(server: Served, count: int = 100) -> list[float]:
        taken = []
        for _ in range(count):
            began = time.monotonic()
            server.answered("1 + 1", reasoning_effort="none", max_tokens=4)
            taken.append(time.monotonic() - began)
        return taken

    async def keep_sending(url: str, ended: asyncio.Event) -> None:
        async with httpx.AsyncClient(base_url=url, timeout=60) as http:
            while not ended.is_set():
                await http.post(
                    "/v1/chat/completions", content=HOSTILE[kind], headers={"content-type": "application/json"}
                )

    async def measure(server: Served) -> list[float]:
        ended = asyncio.Event()
        sending = asyncio.create_task(keep_sending(server.url, ended))
        taken = await asyncio.to_thread(times, server)
        ended.set()
        await sending
        return taken

    with served(load_engine(MODEL)) as server:
        times(server, 10)
        before = statistics.quantiles(times(server), n=100)[98]
        during = statistics.quantiles(asyncio.run(measure(server)), n=100)[98]
        assert during < 2 * before + 0.1  # both share two cores with the client that sends the bodies
