"""One request never hurts another: hostile bodies, slow and silent clients, rows that fail."""

from __future__ import annotations

import asyncio
import gc
import json
import socket
from collections.abc import Iterator
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from pydantic import BaseModel, ValidationError

from tersely.controller.engines.transformers.engine import load_engine
from tersely.controller.serving import limits as body_limits
from tersely.controller.serving.auth_middleware import Access, AuthMiddleware
from tersely.controller.serving.errors import RequestError
from tersely.controller.serving.limits import MAX_VALUES, BodyLimits, BodyTooLarge, check_shape, estimate_memory
from tersely.controller.serving.metrics import Metrics
from tersely.controller.serving.responses_schemas import ResponsesRequest
from tersely.controller.serving.rules import ServerSettings
from tersely.controller.serving.schemas import ChatRequest
from tersely.controller.serving.settings import ServerLimits
from tersely.controller.serving.worker import ServedRow
from tersely.controller.text.tool_calls import parse_tool_calls

from ..support.cpu_limit import limited
from ..support.serving import MODEL, Served, body, served, until

SIZE = 4 << 20
SHORT: dict[str, Any] = {"reasoning_effort": "none", "max_tokens": 4}
HEAD = f'{{"model":"{MODEL}",'
ASKED = '"messages":[{"role":"user","content":"1 + 1"}]'
JSON = {"content-type": "application/json"}


def filled(before: str, item: str, after: str) -> bytes:
    """A body of nearly the largest size."""
    count = (SIZE - len(before) - len(after) - 10) // len(item)
    return ((before + item * count).rstrip(",") + after).encode()


HOSTILE: dict[str, bytes] = {
    "messages": filled(f'{HEAD}"messages":[', "1,", "]}"),
    "parts": filled(f'{HEAD}"messages":[{{"role":"user","content":[', "1,", "]}]}"),
    "tools": filled(f'{HEAD}{ASKED},"tools":[', "1,", "]}"),
    "policies": filled(f'{HEAD}{ASKED},"tersely":{{"policies":[', "1,", "]}}"),
    "metadata": filled(f'{HEAD}{ASKED},"metadata":{{"a":[', "[],", "]}}"),
    "text in metadata": filled(f'{HEAD}{ASKED},"metadata":{{"a":"', "x", '"}}'),
    "unknown fields": (HEAD + ASKED + "".join(f',"k{n}":1' for n in range(300_000)) + "}").encode(),
    "some unknown fields": (HEAD + ASKED + "".join(f',"k{n}":1' for n in range(5_000)) + "}").encode(),
    "as many values as may be": (f'{HEAD}"messages":[' + "1," * (MAX_VALUES - 99) + "1]}").encode(),
    "a long prompt": filled(f'{HEAD}"messages":[{{"role":"user","content":"', "hello ", '"}]}'),
    "escapes": filled(f'{HEAD}"messages":[{{"role":"user","content":"', "\\n", '"}]}'),
    "a name": filled('{"model":"', "x", f'",{ASKED}}}'),
    "a field": filled(f'{HEAD}{ASKED},"', "y", '":1}'),
    "empty texts": filled(f'{HEAD}{ASKED},"metadata":{{', '"":"",', "}}"),
    "depth": f'{HEAD}{ASKED},"metadata":{{"a":{"[" * 9_000}{"]" * 9_000}}}}}'.encode(),
    "UTF-16": filled(f'{HEAD}"messages":[', "1,", "]}").decode()[: SIZE // 3].encode("utf-16"),
    "digits": f'{HEAD}{ASKED},"seed":{"9" * 100_000}}}'.encode(),
}
INPUT = {
    "objects": filled(f'{HEAD}"input":[', "{},", "]}"),
    "some objects": f'{HEAD}"input":[{"{}," * 9_000}{{}}]}}'.encode(),
    "thinking": filled(f'{HEAD}"input":[{{"type":"reasoning","content":[', "{},", "]}]}"),
}
CALL = {"type": "function_call", "call_id": "c", "name": "f"}


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    limits = ServerLimits(batch=4)
    with (
        pytest.MonkeyPatch.context() as patched,
        served(load_engine(MODEL), ServerSettings(limits=limits)) as running,
    ):
        patched.setattr(body_limits, "RATE", 1 << 40)  # or one hostile body would wait for the turn of the one before
        running.answered(**SHORT)
        yield running


def post(server: Served, content: bytes, path: str = "/v1/chat/completions") -> tuple[int, bytes]:
    with limited():  # it was 20 to 60 seconds for some
        response = server.http.post(path, content=content, headers=JSON)
    return response.status_code, response.content


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_body_is_refused_at_once(server: Served, kind: str) -> None:
    status, reply = post(server, HOSTILE[kind])
    assert status in (400, 404, 413) and len(reply) < 5_000, reply


def test_a_prompt_that_is_too_long_never_reaches_the_engine(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.worker, "submit", lambda *_: pytest.fail("it waits for the engine"))
    status, reply = post(server, json.dumps(body("hello " * 20_000)).encode())
    assert status == 400 and json.loads(reply)["error"]["code"] == "context_length_exceeded"


@pytest.mark.parametrize("kind", INPUT)
def test_hostile_input_is_refused_at_once(server: Served, kind: str) -> None:
    status, reply = post(server, INPUT[kind], "/v1/responses")
    assert status in (400, 413) and len(reply) < 5_000, reply


def test_shapes_are_counted_without_parsing() -> None:
    assert check_shape(b'{"a": [1, 2, "x,y[[{{"], "b\\"c,[": {}}') == 1 + 1 + 1 + 2 + 1 + 1 + 1 + 1
    assert check_shape(json.dumps(body("[" * 100 + '"\\' * 100)).encode()) < 20
    for content in (b"[" * 65, b'{"a":' * 65, b"1," * MAX_VALUES, b'""' * 5 * MAX_VALUES, "[1]".encode("utf-16")):
        with pytest.raises(RequestError):
            check_shape(content)
    with limited():
        for content in HOSTILE.values():
            with suppress(RequestError):
                check_shape(content)


def test_a_real_conversation_passes(server: Served) -> None:
    turn = [{"role": "user", "content": [{"type": "text", "text": "1 + 1"}]}, {"role": "assistant", "content": "2"}]
    messages = [*turn * 30, turn[0]]
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}]
    metadata = {f"key {n}": "x" * 512 for n in range(16)}
    assert server.answered(messages=messages, metadata=metadata, **SHORT)["choices"]
    assert check_shape(json.dumps(body(messages=turn * 800, tools=tools * 100)).encode()) < MAX_VALUES


async def arriving(*chunks: bytes, pause: float = 0.0, seconds: float = 60.0) -> Any:
    waiting = list(chunks)

    async def receive() -> Any:
        await asyncio.sleep(pause)
        return {"type": "http.request", "body": waiting.pop(0), "more_body": bool(waiting)}

    return await BodyLimits(10, 100, seconds).read(receive)


def test_bodies_are_bounded_in_size_and_time() -> None:
    assert asyncio.run(arriving(b"12345", b"67890")) == b"1234567890"
    with pytest.raises(BodyTooLarge):
        asyncio.run(arriving(b"12345", b"678901"))
    with pytest.raises(RequestError) as caught:
        asyncio.run(arriving(*b"aaaaaaaa".split(b"a"), pause=0.2, seconds=0.3))
    assert caught.value.status == 408


def test_all_bodies_together_are_bounded() -> None:
    limits = BodyLimits(10, 100, 1.0)
    with limits.hold(150):  # one may always be answered
        for size in (1, 60):
            with pytest.raises(RequestError) as caught, limits.hold(size):
                pass
            assert caught.value.status == 503 and caught.value.retry_after
    assert limits.held == 0
    with limits.hold(50), limits.hold(50):
        assert limits.held == 100


def test_a_body_counts_as_long_as_it_is_answered() -> None:
    limits, held = BodyLimits(10_000, 10_000, 1.0), []

    async def inner(scope: Any, receive: Any, send: Any) -> None:
        held.append(limits.held)

    async def receive() -> Any:
        return {"type": "http.request", "body": b"[1,2]"}

    app = AuthMiddleware(inner, Metrics(), Access(), limits)
    asyncio.run(app({"type": "http", "method": "POST", "path": "/x", "headers": []}, receive, receive))
    assert held == [estimate_memory(5, 3)] and limits.held == 0


def test_large_bodies_leave_time_to_small_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    async def take_turns(limits: BodyLimits) -> None:
        for size in (1_000, 10 << 20, 1_000, 10 << 20, 10 << 20):
            await limits.take_turn(size)
        limits.seconds = 0.5
        with pytest.raises(RequestError) as caught:
            await limits.take_turn(10 << 20)
        assert caught.value.status == 503 and caught.value.retry_after

    # only here: the server of the other tests sleeps as well
    monkeypatch.setattr(body_limits, "asyncio", SimpleNamespace(sleep=sleep, get_running_loop=asyncio.get_running_loop))
    monkeypatch.setattr(body_limits, "RATE", 1 << 20)
    asyncio.run(take_turns(BodyLimits(10, 100, 60.0)))
    each = (10 << 20) / body_limits.RATE
    assert waits[0] == 0 and len(waits) == 3  # the small ones wait for none
    assert 0.5 * each < waits[1] <= each and waits[1] + 0.5 * each < waits[2] <= 2 * each


def test_a_slow_body_is_given_up() -> None:
    settings = ServerSettings(limits=ServerLimits(body_seconds=0.3))
    with (
        served(load_engine(MODEL), settings) as server,
        socket.create_connection(("127.0.0.1", int(server.url.rsplit(":", 1)[1])), 60) as client,
    ):
        client.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 900\r\n\r\n{")
        assert client.recv(100).startswith(b"HTTP/1.1 408")


@pytest.mark.parametrize("method", ["_finish", "emitter", "inner"])
def test_a_row_that_fails_fails_alone(monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    made = ServedRow.__init__

    def init(self: ServedRow, *args: Any) -> None:
        made(self, *args)
        if self.pending.request.stops == ("bad",):

            def fail(*given: Any) -> None:
                raise RecursionError

            if method == "inner":
                assert self.inner is not None
                monkeypatch.setattr(self.inner, "observe", fail)
            else:
                setattr(self, method, fail)

    monkeypatch.setattr(ServedRow, "__init__", init)
    limits = ServerLimits(batch=4, batch_wait=0.5)
    with served(load_engine(MODEL), ServerSettings(limits=limits)) as server:
        replies: list[httpx.Response] = []

        async def ask_all() -> None:
            async with httpx.AsyncClient(base_url=server.url, timeout=60) as http:
                stops: list[dict[str, Any]] = [{}, {"stop": "bad"}, {"stop": "good"}]
                fields: dict[str, Any] = {"max_tokens": 200, "temperature": 0}
                asked = [http.post("/v1/chat/completions", json=body(**fields, **stop)) for stop in stops]
                replies.extend(await asyncio.gather(*asked))

        asyncio.run(ask_all())
        failed = 200 if method == "inner" else 500  # what only control needed goes on without it
        assert [reply.status_code for reply in replies] == [200, failed, 200]
        if failed == 500:
            assert replies[1].json()["error"]["code"] == "engine_failed"
        until(lambda: server.worker.idle)


def test_deep_tool_calls_are_malformed_calls() -> None:
    for inside in ("[" * 100_000, '{"name": "f", "arguments": "' + "[" * 100_000 + '"}'):
        text, (call,) = parse_tool_calls(f"<tool_call>{inside}</tool_call>")
        assert text == "" and call.error is not None


@pytest.mark.parametrize("arguments", ["[" * 100_000, "[" * 3_000 + "]" * 3_000, "9" * 5_000])
def test_arguments_of_earlier_calls_may_be_anything(server: Served, arguments: str) -> None:
    items = [{"role": "user", "content": "1 + 1"}, CALL | {"arguments": arguments}]
    fields = {"model": MODEL, "input": items, "max_output_tokens": 4}
    assert server.http.post("/v1/responses", json=fields).status_code < 500


@pytest.mark.parametrize("body", [ChatRequest, ResponsesRequest])
def test_lists_are_checked_up_to_their_first_error(body: type[BaseModel]) -> None:
    wrong: dict[str, Any] = {"messages": [1] * 99, "input": [1] * 99, "tools": [1] * 99}
    for field in wrong.keys() & body.model_fields.keys():
        with pytest.raises(ValidationError) as caught:
            body.model_validate({"model": MODEL, "messages": [], "input": "x", field: wrong[field]})
        assert sum(error["loc"][:1] == (field,) for error in caught.value.errors()) == 1
    with pytest.raises(ValidationError) as caught:
        body.model_validate({"model": MODEL, **{f"k{n}": 1 for n in range(200)}})
    assert len(caught.value.errors()) == 1


@pytest.mark.parametrize("temperature", [1e-300, 5e-324, 1e-6])
def test_a_tiny_temperature_is_greedy(server: Served, temperature: float) -> None:
    greedy = server.answered(temperature=0, **SHORT)["choices"][0]["message"]
    assert server.answered(temperature=temperature, **SHORT)["choices"][0]["message"] == greedy


def test_a_parsed_body_is_dropped_before_it_waits(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[int] = []
    submit = server.worker.submit

    def look(*given: Any) -> Any:
        lists = [one for one in gc.get_objects() if type(one) is list and one and type(one[0]) is str]
        kept.append(sum(one[0] == "is it dropped" for one in lists))
        return submit(*given)

    monkeypatch.setattr(server.worker, "submit", look)
    content = f'{HEAD}{ASKED},"max_tokens":4,"metadata":{{"a":["is it dropped",1]}}}}'
    assert server.http.post("/v1/chat/completions", content=content, headers=JSON).status_code == 200
    assert kept == [0]
