"""A gateway between its clients and a server that misbehaves: neither learns or breaks what is not theirs."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from tersely.controller.engines.openai.completions import connect
from tersely.controller.engines.transformers.engine import load_engine

from ..support.misbehaving import END, OK, Misbehaving, choice, event, misbehaving
from ..support.serving import MODEL, Served, served, until


@pytest.fixture(scope="module")
def upstream() -> Iterator[Misbehaving]:
    with misbehaving() as upstream:
        yield upstream


@pytest.fixture(scope="module")
def gateway(upstream: Misbehaving) -> Iterator[Served]:
    tokenizer = load_engine(MODEL).tokenizer
    with served(connect(upstream.url, tokenizer=tokenizer, timeout=5.0)) as running:
        yield running


@pytest.mark.parametrize("policy", ["deer", "readiness", "escalate", "budget"])
def test_clients_do_not_learn_where_the_upstream_server_is(gateway: Served, upstream: Misbehaving, policy: str) -> None:
    for stream, statuses in (([event(OK), event(END)], 200), ([b"{}"], 400), ([b"{}"], 401), ([b"data: 7\n\n"], 200)):
        upstream.stream, upstream.status = lambda stream=stream: iter(stream), itertools.repeat(statuses)  # type: ignore
        reply = gateway.chat(max_tokens=60, tersely={"policies": [policy]})
        assert reply.status_code in (200, 400, 502)
        assert str(urlsplit(upstream.url).port) not in reply.text


def test_a_redirect_is_not_followed(gateway: Served, upstream: Misbehaving) -> None:
    with misbehaving() as other:
        upstream.status, upstream.headers = itertools.repeat(307), {"location": f"{other.url}/v1/completions"}
        upstream.stream = lambda: iter([b""])
        try:
            assert gateway.chat(max_tokens=4).status_code == 502
        finally:
            upstream.headers = {}
        assert not other.asked


@pytest.mark.parametrize("ids", [[5] * 100_000, [969, 970, 5_000, (1 << 31) - 1]], ids=len)
def test_more_tokens_than_were_asked_for_and_foreign_ones(
    gateway: Served, upstream: Misbehaving, ids: list[int]
) -> None:
    upstream.status, upstream.stream = itertools.repeat(200), lambda: iter([choice(token_ids=ids), event(END)])
    reply = gateway.answered(max_tokens=8, reasoning_effort="none")
    assert reply["usage"]["completion_tokens"] <= 8
    until(lambda: gateway.worker.idle)
