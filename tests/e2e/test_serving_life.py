"""Disconnects, queues, timeouts and shutdown of the server, and options that are refused."""

from __future__ import annotations

import asyncio
import json
import runpy
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor as Pool
from pathlib import Path
from typing import Any

import httpx
import pytest

from tersely.controller.engines.transformers.engine import TransformersEngine, load_engine
from tersely.controller.serving.cli import serve
from tersely.controller.serving.rules import ServerSettings
from tersely.controller.serving.settings import ServerLimits
from tersely.errors import OptionError, TerselyError

from ..support.refusals import refused
from ..support.serving import MODEL, PATIENCE, Served, body, error_of, served, setting, until

LONG: dict[str, Any] = {"reasoning_effort": "high", "tersely": {"preset": "off"}}
STORM = Path(__file__).resolve().parents[2] / "benchmarks" / "serving_storm.py"


@pytest.fixture
def engine() -> TransformersEngine:
    return load_engine(MODEL)


class WatchedEngine:
    """Keeps the batch size of each step of an engine, which waits in the step `held` until it may go on."""

    def __init__(self, engine: TransformersEngine, held: int | None = None, seconds: float = 0.0) -> None:
        self.steps: list[int] = []
        self.held, self.may_go_on = held, threading.Event()
        engine.model.register_forward_pre_hook(
            lambda model, args, kwargs: self._step(kwargs["input_ids"].shape[0], seconds), with_kwargs=True
        )

    def _step(self, rows: int, seconds: float) -> None:
        self.steps.append(rows)
        time.sleep(seconds)
        if len(self.steps) == self.held:
            assert self.may_go_on.wait(PATIENCE)


def until_left(server: Served) -> None:
    """Wait until the server has noticed that a client has left."""
    until(lambda: server.metrics().get('tersely_requests_total{status="499"}') == 1)


def has_waiting(server: Served, count: int) -> Callable[[], bool]:
    """Checks that one request runs and this many wait."""
    return lambda: (len(server.worker._running), len(server.worker._waiting)) == (1, count)


def disconnect_after(server: Served, lines: int, **fields: Any) -> None:
    """Start a stream and close the connection after some lines."""
    with server.http.stream("POST", "/v1/chat/completions", json=body(stream=True, **fields)) as response:
        for number, _ in enumerate(response.iter_lines()):
            if number == lines:
                return


def test_disconnecting_from_a_stream_frees_the_row(engine: TransformersEngine) -> None:
    watched = WatchedEngine(engine, held=30)
    with served(engine) as server, setting(watched.may_go_on):
        disconnect_after(server, 10, **LONG)
        until_left(server)
        watched.may_go_on.set()
        until(lambda: server.worker.idle)
        assert len(watched.steps) <= 31
        assert server.metrics()["tersely_requests_in_flight"] == 0


def test_disconnecting_without_a_stream_frees_the_row(engine: TransformersEngine) -> None:
    watched = WatchedEngine(engine, held=5)
    with served(engine) as server, setting(watched.may_go_on):
        with pytest.raises(httpx.ReadTimeout):
            server.http.post("/v1/chat/completions", json=body(**LONG), timeout=1.0)
        until_left(server)
        watched.may_go_on.set()
        until(lambda: server.worker.idle)
        assert len(watched.steps) <= 6


def test_a_disconnect_makes_the_batch_smaller_and_the_others_go_on(engine: TransformersEngine) -> None:
    watched = WatchedEngine(engine, held=60)
    with (
        served(engine, ServerSettings(limits=ServerLimits(batch=6, batch_wait=PATIENCE))) as server,
        Pool() as pool,
        setting(watched.may_go_on),
    ):
        replies = [pool.submit(server.answered, **LONG) for _ in range(2)]
        disconnect_after(server, 100, n=4, **LONG)
        until_left(server)
        watched.may_go_on.set()
        assert all("boxed" in r.result()["choices"][0]["message"]["content"] for r in replies)
        assert watched.steps[5] == 6 and max(watched.steps[61:]) <= 2


def test_requests_that_arrive_together_are_one_batch(engine: TransformersEngine) -> None:
    watched = WatchedEngine(engine)
    with (
        served(engine, ServerSettings(limits=ServerLimits(batch=4, batch_wait=PATIENCE))) as server,
        Pool() as pool,
    ):
        kinds: list[dict[str, Any]] = [
            {},
            {"reasoning_effort": "low"},
            {"reasoning_effort": "none"},
            {"max_tokens": 80},
        ]
        replies = [pool.submit(server.answered, **fields) for fields in kinds]
        tiers = [reply.result()["choices"][0]["tersely"]["tier"] for reply in replies]
        assert (watched.steps[1], tiers) == (4, ["normal", "easy", "none", "normal"])


def test_a_finished_row_does_not_wait_for_the_others(engine: TransformersEngine) -> None:
    watched = WatchedEngine(engine, held=60)
    with (
        served(engine, ServerSettings(limits=ServerLimits(batch=2, batch_wait=PATIENCE))) as server,
        Pool() as pool,
        setting(watched.may_go_on),
    ):
        long = pool.submit(server.answered, reasoning_effort="high", max_tokens=200)
        short = pool.submit(server.answered, reasoning_effort="none")
        short.result()
        assert not long.done()
        watched.may_go_on.set()
        long.result()


def test_a_full_queue_refuses_requests(engine: TransformersEngine) -> None:
    watched = WatchedEngine(engine, held=5)
    with (
        served(engine, ServerSettings(limits=ServerLimits(batch=1, waiting=2))) as server,
        Pool() as pool,
        setting(watched.may_go_on),
    ):
        replies = []
        for number in range(3):
            replies.append(pool.submit(server.chat, max_tokens=40, **LONG))
            until(has_waiting(server, number))
        response = server.chat()
        error = error_of(response, 503)
        assert (error["code"], response.headers["retry-after"]) == ("busy", "1")
        watched.may_go_on.set()
        assert [reply.result().status_code for reply in replies] == [200] * 3
        assert max(watched.steps) == 1
        assert server.chat(reasoning_effort="none").status_code == 200


def test_a_seed_is_independent_of_other_requests(engine: TransformersEngine) -> None:
    with served(engine, ServerSettings(limits=ServerLimits(batch_wait=0.5))) as server, Pool() as pool:
        fields: dict[str, Any] = {"seed": 6, "reasoning_effort": "low", "temperature": 1.0}
        replies = [pool.submit(server.answered, **fields) for _ in range(3)]
        assert len({reply.result()["choices"][0]["message"]["reasoning"] for reply in replies}) == 1


@pytest.mark.parametrize("stream", [False, True])
def test_requests_time_out(engine: TransformersEngine, stream: bool) -> None:
    WatchedEngine(engine, seconds=0.05)
    with served(engine, ServerSettings(limits=ServerLimits(timeout=0.6))) as server:
        response = server.chat(stream=stream, **LONG)
        if stream:
            *_, last, done = response.text.strip().split("\n\n")
            assert done == "data: [DONE]" and json.loads(last.removeprefix("data: "))["error"]["code"] == "timeout"
        else:
            assert error_of(response, 504)["code"] == "timeout"
        until(lambda: server.worker.idle)
        until(lambda: server.metrics().get('tersely_requests_total{status="504"}') == 1)


def test_the_server_survives_an_engine_error(engine: TransformersEngine) -> None:
    with served(engine) as server:
        whole, engine.generate = engine.generate, lambda *_: 1 / 0  # type: ignore[assignment, method-assign]
        assert error_of(server.chat(), 500)["code"] == "engine_failed"
        engine.generate = whole  # type: ignore[method-assign]
        assert server.answered(reasoning_effort="none")


def test_shutdown_finishes_running_requests_and_refuses_new_ones(engine: TransformersEngine) -> None:
    watched = WatchedEngine(engine, held=5)
    with served(engine, drain=PATIENCE) as server, Pool() as pool, setting(watched.may_go_on):
        reply = pool.submit(server.chat)
        until(lambda: bool(server.worker._running))
        server.server.stop()
        response = server.chat()
        assert error_of(response, 503)["code"] == "shutting_down" and response.headers["retry-after"]
        error_of(server.http.get("/health"), 503)
        error_of(server.http.get("/ready"), 503)
        watched.may_go_on.set()
        assert reply.result().status_code == 200 and "boxed" in reply.result().text
        until(lambda: not server.worker._thread.is_alive())
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{server.url}/health")


def test_shutdown_aborts_after_the_drain_time(engine: TransformersEngine) -> None:
    watched = WatchedEngine(engine, seconds=0.05)
    limits = ServerLimits(batch=2, batch_wait=PATIENCE)
    with served(engine, ServerSettings(limits=limits), drain=0.3) as server, Pool() as pool:
        replies = [pool.submit(server.chat, stream=stream, **LONG) for stream in (False, True)]
        until(lambda: len(watched.steps) > 3)
        server.server.stop()
        assert [reply.result().status_code for reply in replies] == [503, 200]
        assert all("shutting_down" in reply.result().text for reply in replies)
        assert len(watched.steps) < 100


def test_a_closed_server_leaves_nothing_behind(engine: TransformersEngine) -> None:
    before = {thread.name for thread in threading.enumerate()}
    with served(engine) as server:
        disconnect_after(server, 3)
        assert server.answered(reasoning_effort="none")
        assert "tersely-worker" in {thread.name for thread in threading.enumerate()}
    assert {t.name for t in threading.enumerate()} - before <= {"asyncio_0"}
    assert engine.model is None


def test_many_mixed_requests_with_disconnects(engine: TransformersEngine) -> None:
    storm = runpy.run_path(str(STORM))["storm"]
    with served(engine, ServerSettings(limits=ServerLimits(waiting=300, batch=16))) as server:
        became = asyncio.run(storm(server.url, 48, 0, 0.3, PATIENCE))
        assert set(became) == {"answered", "left"} and min(became.values()) > 5 and became.total() == 48
        until(lambda: server.worker.idle)
        until(lambda: server.metrics()["tersely_requests_in_flight"] == 0)
        counted = {k: v for k, v in server.metrics().items() if k.startswith("tersely_requests_total")}
        assert set(counted) == {'tersely_requests_total{status="200"}', 'tersely_requests_total{status="499"}'}
        assert became["answered"] <= counted['tersely_requests_total{status="200"}']
        until(lambda: not server.server.server_state.tasks)
        assert not server.worker._waiting and not server.worker._running


def test_a_port_in_use_is_refused() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with refused(OptionError, "port_in_use"):
            serve(port=port, model="no-such-model")


REFUSED = [
    ({"budget": ["low"]}, "invalid_option"),
    ({"budget": ["lwo=3"]}, "unknown_name"),
    ({"effort": "hgih"}, "unknown_name"),
    ({"preset": "fats"}, "unknown_name"),
    ({"policy": ["budgte"]}, "unknown_name"),
    ({"api_key": " "}, "invalid_option"),
    ({"no_thinking": True, "think_prompt": True}, "invalid_option"),
    ({"no_thinking": True, "markers": "<a>,</a>"}, "invalid_option"),
    ({"host": "256.1.1.1"}, "cannot_listen"),
    ({"tuned": Path("nowhere.json")}, "error"),
    ({"tuned": Path("nowhere.json"), "effort": "hard"}, "invalid_option"),
    ({"config": Path("nowhere.toml")}, "invalid_config"),
    ({"port": 0, "model": "no-such-model"}, "model_unusable"),
]


@pytest.mark.parametrize(("options", "code"), REFUSED)
def test_wrong_options_are_refused_before_loading(options: dict[str, Any], code: str) -> None:
    with pytest.raises(TerselyError) as caught:
        serve(**options)
    assert caught.value.code == code


def test_grouped_attention_reaches_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, bool]] = []

    def load(model: str, *, grouped: bool) -> None:
        asked.append((model, grouped))
        raise OptionError("no engine")

    monkeypatch.setattr("tersely.controller.engines.transformers.engine.load_engine", load)
    for grouped in (False, True):
        with refused(OptionError):
            serve(model="m", port=0, grouped_attention=grouped)
    assert asked == [("m", False), ("m", True)]
