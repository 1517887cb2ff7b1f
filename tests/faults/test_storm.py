"""Thousands of fuzzed requests: none is answered by an internal error, none hangs, and memory does not grow."""

from __future__ import annotations

import asyncio
import gc
import json
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import httpx
import pytest

from tersely.controller.engines.transformers.engine import load_engine
from tersely.controller.serving.rules import ServerSettings

from ..support.serving import MODEL, body, configured, served, until
from ..support.vllm_server import KEY, NAME, VllmServer, gateway_server, plain_vllm_server, vllm_server

PATIENCE = 120.0

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


def fuzzed(rng: Random, model: str) -> tuple[str, bytes]:
    """A path and a body: valid but for some fields, with some bytes flipped now and then."""
    path = rng.choice(["/v1/chat/completions", "/v1/chat/completions", "/v1/responses"])
    start: dict[str, Any] = {"model": MODEL, "input": "1 + 1"} if path.endswith("responses") else body("1 + 1")
    start |= {"max_output_tokens" if path.endswith("responses") else "max_tokens": 4, "model": model}
    for _ in range(rng.randint(0, 4)):
        start[rng.choice(FIELDS)] = rng.choice(VALUES)
    content = bytearray(json.dumps(start).encode())
    for _ in range(rng.choice([0, 0, 0, 1, 4])):
        content[rng.randrange(len(content))] = rng.randrange(256)
    return path, bytes(content)


def resident(*pids: int) -> int:
    """Pages of memory of processes; of this one if none is given."""
    gc.collect()
    return sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in pids or ("self",))


async def storm(url: str, count: int, seed: int, model: str = MODEL, key: str = "") -> Counter[str]:
    """What becomes of so many requests, 32 at a time: a status, `left` early, or `hung`."""
    rng, outcomes = Random(seed), Counter[str]()
    headers = {"content-type": "application/json", "x-api-key": key}

    async def send(http: httpx.AsyncClient) -> None:
        nonlocal count
        while count > 0:
            count -= 1
            (path, content), leaves = fuzzed(rng, model), rng.random() < 0.25
            try:
                async with asyncio.timeout(0.05 if leaves else PATIENCE):
                    outcome = str((await http.post(path, content=content)).status_code)
            except TimeoutError:
                outcome = "left" if leaves else "hung"
            outcomes[outcome] += 1

    async with httpx.AsyncClient(base_url=url, timeout=None, headers=headers) as http:
        await asyncio.gather(*(send(http) for _ in range(32)))
    return outcomes


def check(outcomes: Counter[str], growth: float) -> None:
    print(f"{outcomes.total()} requests, {dict(outcomes)}, memory {growth - 1:+.1%}")
    assert not outcomes["hung"] and {one for one in outcomes if one.startswith("5")} <= {"503"}
    assert outcomes["200"] > outcomes.total() // 20 and outcomes["400"] > outcomes.total() // 5
    assert growth < 1.2


@pytest.mark.parametrize("count", [200, pytest.param(10_000, marks=pytest.mark.attack)])
def test_fuzzed_requests(count: int) -> None:
    with served(load_engine(MODEL), ServerSettings(configured(ceilings={"max_tokens": 64}))) as server:
        asyncio.run(storm(server.url, min(count // 2, 200), 1))  # what is loaded once
        until(lambda: server.worker.idle)
        before = resident()
        outcomes = asyncio.run(storm(server.url, count, 2))
        until(lambda: server.worker.idle and server.metrics()["tersely_requests_in_flight"] == 0)
        check(outcomes, resident() / before)


def storm_on(server: VllmServer) -> None:
    """A storm on a server in processes of its own."""
    pids = [pid for pid, _ in server.processes()]
    asyncio.run(storm(server.url, 500, 1, NAME, KEY))
    server.wait_idle()
    before = resident(*pids)
    outcomes = asyncio.run(storm(server.url, 10_000, 2, NAME, KEY))
    server.wait_idle()
    check(outcomes, resident(*pids) / before)


@pytest.mark.attack
@pytest.mark.vllm
def test_fuzzed_requests_to_vllm(tmp_path: Path) -> None:
    with vllm_server(MODEL, tmp_path) as server:
        storm_on(server)


@pytest.mark.attack
@pytest.mark.vllm
def test_fuzzed_requests_to_a_gateway(tmp_path: Path) -> None:
    for folder in ("vllm", "gateway"):
        (tmp_path / folder).mkdir()
    with (
        plain_vllm_server(MODEL, tmp_path / "vllm") as vllm,
        gateway_server(vllm.url, MODEL, tmp_path / "gateway", KEY) as server,
    ):
        storm_on(server)
        vllm.wait_idle()
