"""A storm of mixed requests on a gateway whose upstream server fails for a while and whose clients leave."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import httpx
import pytest

from tersely.controller.engines.openai.completions import connect
from tersely.controller.engines.transformers.engine import load_engine

from ..support.misbehaving import END, choice, event, misbehaving
from ..support.relay import Relay
from ..support.serving import MODEL, QUESTION, served, until
from ..support.vllm_server import KEY, NAME, gateway_server, plain_vllm_server
from .test_storm import resident

# A client that gives up while it connects may leave its own socket to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
AT_ONCE, LEAVING, PATIENCE = 64, 0.2, 120.0
KEPT = 6.0
"""Seconds after which idle connections to the upstream server have been closed."""
FAILING = (0.3, 0.6)
"""The part of the storm in which the upstream server fails."""
REPLY = "<think>\nMia has 48. 48 + 31 = 79. 79 - 26 = 53.\n\nSo it is 53.\n</think>\nThe answer is \\boxed{53}."
FIELDS: tuple[dict[str, Any], ...] = (
    *({}, {"reasoning_effort": "none"}, {"reasoning_effort": "low"}, {"reasoning_effort": "auto"}, {"n": 2}),
    *({"stop": ["boxed"]}, {"thinking_token_budget": 20}, {"tersely": {"preset": "fast"}}, {"temperature": 0}),
    *({"temperature": "hot"}, {"model": "another"}, {"messages": []}),
)


async def ask(http: httpx.AsyncClient, model: str, rng: Random) -> str:
    """Send a request; `answered`, `failed` for an error within a stream, a status, or `broken` for anything else."""
    streams, responses = rng.random() < 0.6, rng.random() < 0.2
    given: dict[str, Any] = {"model": model, "stream": streams}
    if responses:
        path, given = "/v1/responses", given | {"input": QUESTION, "max_output_tokens": 48}
    else:
        messages = [{"role": "user", "content": QUESTION}]
        path, given = "/v1/chat/completions", given | {"messages": messages, "max_tokens": 48} | rng.choice(FIELDS)
    try:
        async with http.stream("POST", path, json=given) as response:
            text = (await response.aread()).decode()
    except httpx.TransportError:
        return "broken"
    if response.status_code != 200:
        return str(response.status_code) if set(json.loads(text)) == {"error"} else "broken"
    if not streams:
        return "answered" if json.loads(text)["usage"] else "broken"
    *events, last = text.removesuffix("\n\n").split("\n\n")
    if any('"error":{' in one for one in (*events, last)):
        return "failed"
    ends = "event: response." if responses else "data: [DONE]"
    return "answered" if last.startswith(ends) and events else "broken"


async def storm(
    url: str, count: int, seed: int, model: str, fail: Callable[[bool], None], key: str = ""
) -> Counter[str]:
    """What becomes of so many requests, of which a part meets a server that fails, and some are given up."""
    outcomes, rng, numbers = Counter[str](), Random(seed), itertools.count()
    begin, end = (int(part * count) for part in FAILING)

    async def send(http: httpx.AsyncClient) -> None:
        while (number := next(numbers)) < count:
            if number in (begin, end):
                fail(number == begin)
            leaves, after = rng.random() < LEAVING, 0.5 * rng.random()
            try:
                async with asyncio.timeout(after if leaves else PATIENCE):
                    outcome = await ask(http, model, Random(f"{seed}:{number}"))
            except TimeoutError:
                outcome = "left" if leaves else "hung"
            outcomes[outcome] += 1

    limits = httpx.Limits(max_connections=None, max_keepalive_connections=AT_ONCE)
    async with httpx.AsyncClient(base_url=url, timeout=None, limits=limits, headers={"x-api-key": key}) as http:
        await asyncio.gather(*(send(http) for _ in range(AT_ONCE)))
    return outcomes


def check(outcomes: Counter[str], count: int) -> None:
    print(dict(outcomes))
    assert outcomes.total() == count and not outcomes["hung"] and not outcomes["broken"]
    assert {one for one in outcomes if one.isdecimal()} <= {"400", "404", "502", "503"}
    assert outcomes["answered"] > count // 5 and outcomes["502"] + outcomes["failed"] > 0
    assert outcomes["left"] > count // 20


def descriptors(pid: int | str = "self") -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def scripted(ids: list[int]) -> Iterator[bytes]:
    """The events of a reply."""
    for token in ids:
        yield choice(token_ids=[token])
    yield event(END)


def test_a_storm_on_a_gateway_whose_upstream_fails_for_a_while() -> None:
    tokenizer, count = load_engine(MODEL).tokenizer, 200
    ids = tokenizer(REPLY, add_special_tokens=False)["input_ids"]
    with misbehaving() as upstream, Relay(upstream.url).serve() as relay:
        upstream.stream = lambda: scripted(ids)
        with served(connect(relay.url, tokenizer=tokenizer, timeout=5.0)) as gateway:

            def idle() -> bool:
                return bool(gateway.worker.idle) and gateway.metrics()["tersely_requests_in_flight"] == 0

            asyncio.run(storm(gateway.url, AT_ONCE, 1, MODEL, lambda failing: None))  # what is opened once
            until(idle)
            before = descriptors()
            check(asyncio.run(storm(gateway.url, count, 2, MODEL, relay.fail)), count)
            until(idle)
            until(lambda: descriptors() <= before + 8)
            assert gateway.answered(max_tokens=48)["usage"]["completion_tokens"] > 10


@pytest.mark.attack
@pytest.mark.vllm
def test_a_long_storm_on_a_gateway_before_vllm(tmp_path: Path) -> None:
    count = 2_000
    for folder in ("vllm", "gateway"):
        (tmp_path / folder).mkdir()
    with (
        plain_vllm_server(MODEL, tmp_path / "vllm") as vllm,
        Relay(vllm.url).serve() as relay,
        gateway_server(relay.url, MODEL, tmp_path / "gateway", KEY) as gateway,
    ):
        pid = gateway.process.pid

        def settle() -> tuple[int, int]:
            """Memory and descriptors of the gateway once it has closed the connections that idle."""
            gateway.wait_idle()
            vllm.wait_idle()
            time.sleep(KEPT)
            asked = {"model": NAME, "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 48}
            httpx.post(f"{gateway.url}/v1/chat/completions", json=asked, headers={"x-api-key": KEY}, timeout=PATIENCE)
            return resident(pid), descriptors(pid)

        asyncio.run(storm(gateway.url, 4 * AT_ONCE, 1, NAME, lambda failing: None, KEY))
        memory, opened = settle()
        check(asyncio.run(storm(gateway.url, count, 2, NAME, relay.fail, KEY)), count)
        after, left = settle()
        print(f"memory {after / memory - 1:+.1%}, descriptors {opened} to {left}")
        assert after < 1.2 * memory and left <= opened + 4
