"""A gateway in front of a real vLLM server, and in front of servers that fail."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import openai
import pytest

from tersely.controller.engines.openai.completions import connect
from tersely.controller.engines.openai.engine import RemoteEngine
from tersely.controller.engines.transformers.engine import TransformersEngine, load_engine
from tersely.controller.options import make_options
from tersely.controller.serving.cli import serve
from tersely.controller.serving.config import Upstream
from tersely.controller.serving.gateway import Thinking, open_upstreams
from tersely.controller.serving.metrics import Metrics
from tersely.controller.serving.rules import ServerSettings
from tersely.controller.serving.settings import ServerLimits
from tersely.controller.session import Session
from tersely.errors import ModelError, OptionError

from ..support.conversation import Address, check_conversation
from ..support.refusals import refused
from ..support.remote_servers import TextServer, serve_http
from ..support.serving import (
    MODEL,
    QUESTION,
    Served,
    body,
    chunks_of,
    configured,
    error_of,
    running,
    served,
    setting,
    texts_of,
    until,
)
from ..support.vllm_server import KEY, VllmServer

pytestmark = pytest.mark.vllm

GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 240}
CEILING = 40


@pytest.fixture(scope="module")
def vllm(plain_vllm_server: Callable[[], VllmServer]) -> VllmServer:
    return plain_vllm_server()


def upstream(vllm: VllmServer) -> RemoteEngine:
    """An engine on the server; the gateway closes it."""
    return connect(vllm.url, "tiny", MODEL, KEY)


@pytest.fixture(scope="module")
def gateway(vllm: VllmServer) -> Iterator[Served]:
    with served(upstream(vllm)) as running_server:
        yield running_server


@pytest.fixture(scope="module")
def capped() -> Iterator[Served]:
    with served(
        load_engine(MODEL), ServerSettings(configured(ceilings={"thinking_tokens": CEILING}))
    ) as running_server:
        yield running_server


@pytest.fixture(scope="module")
def local() -> TransformersEngine:
    return load_engine(MODEL, dtype="float32")


@pytest.mark.parametrize(("preset", "budget"), [("off", None), ("concise", None), ("budget", 40)])
def test_replies_are_those_of_the_model_in_this_process(
    gateway: Served, local: TransformersEngine, preset: str, budget: int | None
) -> None:
    options = make_options(max_new_tokens=240, temperature=0.0, preset=preset, thinking_budget=budget)
    expected = Session(local).run([QUESTION], options)[0]
    thinking: dict[str, Any] = {"thinking": {"type": "enabled", "budget_tokens": budget}} if budget else {}
    choice = gateway.answered(**GREEDY, **thinking, tersely={"preset": preset})["choices"][0]
    assert choice["message"]["content"] == expected.answer
    assert choice["message"]["reasoning_content"] == expected.thinking
    decisions = [(d["policy"], d["action"], d["position"]) for d in choice["tersely"]["decisions"]]
    assert decisions == [(d.policy, d.action, d.position) for d in expected.trace]
    acted = {"off": set(), "concise": {"inject"}, "budget": {"close"}}
    assert {action for _, action, _ in decisions} == acted[preset]


def test_the_official_client_streams(gateway: Served) -> None:
    client = openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none")
    messages: Any = [{"role": "user", "content": QUESTION}]
    whole = gateway.answered(**GREEDY)["choices"][0]["message"]
    stream = client.chat.completions.create(model=MODEL, messages=messages, stream=True, **GREEDY)
    chunks = [chunk.to_dict() for chunk in stream]
    assert texts_of(chunks) == (whole["reasoning_content"], whole["content"])
    rows = client.chat.completions.create(model=MODEL, messages=messages, n=2, seed=3, max_tokens=240).choices
    assert [row.index for row in rows] == [0, 1] and rows[0].message.content != ""


def test_requests_run_at_the_same_time(local: TransformersEngine) -> None:
    with (
        TextServer(local).serve() as server,
        served(connect(server.url, tokenizer=MODEL, api_key="")) as gateway,
        ThreadPoolExecutor(4) as pool,
        setting(server.may_write),
    ):
        server.may_write.clear()
        replies = [pool.submit(gateway.chat, max_tokens=60, tersely={"preset": "off"}) for _ in range(4)]
        until(lambda: server.running == 4)
        server.may_write.set()
        assert all(reply.result().status_code == 200 for reply in replies)
        until(lambda: gateway.worker.idle)


@pytest.mark.parametrize(
    "fields",
    [
        {"reasoning_effort": "max"},
        {"thinking": {"type": "enabled", "budget_tokens": 500}},
        {"thinking": {"type": "adaptive"}},
        {"tersely": {"preset": "off"}},
        {"tersely": {"policies": []}},
        {"tersely": {"effort": "hard", "policies": ["hint"]}},
        {"n": 2, "seed": 1, "temperature": 1.0, "max_completion_tokens": 800},
    ],
    ids=str,
)
def test_no_field_exceeds_the_ceiling(capped: Served, fields: dict[str, Any]) -> None:
    reply = capped.answered(**fields)
    spent = [choice["tersely"]["usage"]["thinking"] for choice in reply["choices"]]
    assert all(0 < tokens <= CEILING for tokens in spent), spent
    assert all(choice["message"]["content"] for choice in reply["choices"])


def test_shadow_mode_cannot_lift_the_ceiling(capped: Served) -> None:
    assert capped.refused(tersely={"shadow": True})["param"] == "tersely.shadow"


def test_a_client_that_leaves_stops_the_upstream_server(gateway: Served, vllm: VllmServer) -> None:
    """vLLM's engine is paused, so that no stream can end by itself; its web server sees which are closed."""
    fields: dict[str, Any] = {"stream": True, "max_tokens": 900, "tersely": {"preset": "off"}}
    (engine,) = (pid for pid, name in vllm.processes() if name.startswith("VLLM::Engine"))
    vllm.wait_idle()
    before = vllm.ended()
    try:
        with gateway.http.stream("POST", "/v1/chat/completions", json=body(**fields)) as response:
            next(response.iter_lines())
            os.kill(engine, signal.SIGSTOP)
        until(lambda: gateway.worker.idle)
        vllm.wait_until(lambda: vllm.ended() > before)
    finally:
        os.kill(engine, signal.SIGCONT)
    vllm.wait_idle()  # its own count is some steps old


def test_a_stream_that_breaks_for_good_is_an_error_of_that_request(local: TransformersEngine) -> None:
    broken: set[int] = set()
    with TextServer(local, breaks=lambda number: 3 if number in broken else None).serve() as server:
        engine = connect(server.url, tokenizer=MODEL, api_key="")
        engine.retries = 0
        with served(engine) as gateway:
            broken.update(range(len(server.requests), 10_000))
            error = error_of(gateway.chat(**GREEDY), 502)
            assert error["code"] == "server_lost" and server.url not in error["message"]
            with gateway.http.stream("POST", "/v1/chat/completions", json=body(stream=True, **GREEDY)) as response:
                events = [line for line in response.iter_lines() if line]
            assert events[-1] == "data: [DONE]"
            assert json.loads(events[-2].removeprefix("data: "))["error"]["code"] == "server_lost"
            broken.clear()
            assert gateway.answered(**GREEDY)["choices"][0]["message"]["content"]
            until(lambda: gateway.worker.idle)


def test_a_busy_upstream_server_is_asked_again(local: TransformersEngine) -> None:
    busy: set[int] = set()
    with (
        TextServer(local, breaks=lambda number: 0 if number in busy else None).serve() as server,
        served(connect(server.url, tokenizer=MODEL, api_key="")) as gateway,
    ):
        busy.add(len(server.requests))
        assert gateway.answered(**GREEDY)["choices"][0]["message"]["content"]


def test_too_many_open_requests_are_refused(local: TransformersEngine) -> None:
    settings = ServerSettings(limits=ServerLimits(batch=1, waiting=1))
    with (
        TextServer(local).serve() as server,
        served(connect(server.url, tokenizer=MODEL, api_key=""), settings) as gateway,
        ThreadPoolExecutor(2) as pool,
        setting(server.may_write),
    ):
        server.may_write.clear()
        replies = [pool.submit(gateway.chat, max_tokens=60) for _ in range(2)]
        until(lambda: gateway.metrics()["tersely_requests_in_flight"] == 2)
        assert error_of(gateway.chat(), 503)["code"] == "busy"
        server.may_write.set()
        assert all(reply.result().status_code == 200 for reply in replies)


def test_the_chat_endpoint_of_a_real_server(vllm: VllmServer, gateway: Served) -> None:
    upstream, settings, metrics = Upstream(url=vllm.url, kind="chat"), ServerSettings(), Metrics()
    workers = open_upstreams([upstream], Path(), Thinking(), settings.limits, metrics, KEY)
    with running(settings, dict(workers), metrics) as server:
        fields = {**body(**GREEDY), "model": "tiny"}
        choice = server.http.post("/v1/chat/completions", json=fields).json()["choices"][0]
        content = choice["message"]["content"]
        expected = gateway.answered(**GREEDY, tersely={"preset": "off"})["choices"][0]["message"]
        # Started without a reasoning parser, it leaves thinking and answer in one text, and no markers.
        assert content.startswith(expected["reasoning_content"]) and content.endswith(expected["content"])
        assert choice["tersely"]["usage"]["answer"] > 50
        with server.http.stream("POST", "/v1/chat/completions", json={**fields, "stream": True}) as response:
            assert texts_of(chunks_of(response.iter_lines())) == ("", content)


def test_keys_of_clients_stay_here(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str | None] = []

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: Any) -> None:
            pass

        def do_GET(self) -> None:
            seen.append(self.headers.get("Authorization"))
            self.send_error(401)

    monkeypatch.setenv("TERSELY_API_KEY", "of-clients")
    monkeypatch.setenv("OPENAI_API_KEY", "of-openai")
    with serve_http(Handler) as url:
        for key in (None, "of-the-server"):
            with refused(ModelError, "invalid_api_key"):
                serve(upstream=url, upstream_key=key, api_key="of-clients", tokenizer=MODEL, port=0)
    assert seen == [None, "Bearer of-the-server"]


def test_options_that_contradict_each_other_are_refused() -> None:
    for options in (
        {"tokenizer": MODEL},
        {"upstream_key": "k"},
        {"upstream": "http://127.0.0.1:9", "grouped_attention": True},
        {"max_thinking_tokens": 100, "shadow_share": 0.5},
    ):
        with refused(OptionError):
            serve(port=0, **options)  # type: ignore[arg-type]
    with refused(OptionError, "unknown_name"):
        serve(port=0, log="yaml")
    with refused(ModelError, "server_unreachable"):
        serve(port=0, upstream="http://127.0.0.1:9", tokenizer=MODEL)


def test_a_request_leaves_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    with served(load_engine(MODEL), ServerSettings(log="json")) as server:
        reply = server.http.post("/v1/chat/completions", json=body(**GREEDY), headers={"x-request-id": "r-1"})
        assert reply.headers["x-request-id"] == "r-1"
        other = server.http.post("/v1/chat/completions", json=body(n=99), headers={"x-request-id": 'a "b"'})
        assert other.status_code == 400 and other.headers["x-request-id"] != 'a "b"'
    usage = reply.json()["choices"][0]["tersely"]["usage"]
    end = time.monotonic() + 60
    lines: list[dict[str, Any]] = []
    while len(lines) < 2 and time.monotonic() < end:
        lines += [json.loads(line) for line in capfd.readouterr().err.splitlines() if line.startswith("{")]
    assert [(line["status"], line["path"]) for line in lines] == [(s, "/v1/chat/completions") for s in (200, 400)]
    assert lines[0]["id"] == "r-1" and lines[0]["thinking"] == usage["thinking"] and lines[0]["exit"]
    assert QUESTION not in json.dumps(lines)


def test_a_client_holds_the_conversation_of_other_servers(gateway: Served) -> None:
    check_conversation("openai", Address(f"{gateway.url}/v1", MODEL, QUESTION))
