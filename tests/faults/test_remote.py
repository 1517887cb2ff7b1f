"""A server that misbehaves: the remote engine ends in time, in bounded memory, and with one kind of error."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import itertools
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import aclosing
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, ClassVar

import pytest
from transformers import AutoTokenizer

from tersely.controller.engines.openai import ServerLostError, StreamError
from tersely.controller.engines.openai import engine as remote_engine
from tersely.controller.engines.openai.client import OpenAIClient, RefusedError, find_proxy
from tersely.controller.engines.openai.completions import connect
from tersely.controller.engines.openai.events import MAX_EVENT, EventDecoder, parse_event, read_body
from tersely.controller.types import Request, SamplingParams
from tersely.errors import CapabilityError, ModelError, OptionError, TerselyError
from tersely.models import get_model_path

from ..support.cpu_limit import limited
from ..support.misbehaving import END, OK, Misbehaving, choice, event, forever, misbehaving
from ..support.refusals import refused
from ..support.remote_servers import serve_http

MALFORMED: dict[str, bytes] = {
    "a number": b"data: 7\n\n",
    "a list": b"data: [1]\n\n",
    "null": b"data: null\n\n",
    "no JSON": b"data: {\n\n",
    "deep": b"data: " + b"[" * 100_000 + b"\n\n",
    "digits": b'data: {"choices": ' + b"9" * 5_000 + b"}\n\n",
    "choices": event({"choices": 7}),
    "a choice": event({"choices": [7]}),
    "choices by name": event({"choices": {"a": 1}}),
    "a negative id": choice(token_ids=[-1]),
    "a large id": choice(token_ids=[2**40]),
    "a text as id": choice(token_ids=["a"]),
    "a flag as id": choice(token_ids=[True]),
    "ids": choice(token_ids=7),
    "finish reason": choice(token_ids=[5], finish_reason={}),
    "logprobs": choice(token_ids=[5], logprobs=7),
    "lists of logprobs": choice(token_ids=[5], logprobs={"token_logprobs": ["a"], "top_logprobs": [{"a": 1, "b": 2}]}),
    "large logprobs": choice(token_ids=[5], logprobs={"token_logprobs": [1e9], "top_logprobs": [{"a": 1e9, "b": 2}]}),
    "other logprobs": choice(token_ids=[5], logprobs={"token_logprobs": [1], "top_logprobs": [7]}),
    "a long line": b"data: " + b"x" * (MAX_EVENT + 1),
    "the end": b"",
}
ENDLESS: dict[str, Callable[[], Iterator[bytes]]] = {
    "comments": lambda: forever(b": ping\n\n", 0.05),
    "events without choices": lambda: forever(event({}), 0.01),
    "chunks without tokens": lambda: forever(choice(token_ids=[]), 0.01),
    "choices of others": lambda: forever(event({"choices": [{"index": 1, "token_ids": [5]}]}), 0.01),
    "a line": lambda: forever(b"data: " + b"x" * 65_536),
    "an event": lambda: forever(b"data: " + b"x" * 1_000 + b"\n"),
    "lines without data": lambda: forever(b"data:\n" * 10_000),
}


@pytest.fixture
def server() -> Iterator[Misbehaving]:
    with misbehaving() as server:
        yield server


@pytest.fixture(autouse=True)
def _no_delay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_engine, "_RETRY_DELAY", 0.01)


TOKENIZER = AutoTokenizer.from_pretrained(get_model_path("tersely-tiny-small"))


def generate(server: Misbehaving, rows: int = 1, timeout: float = 2.0) -> Any:
    engine = connect(server.url, tokenizer=TOKENIZER, timeout=timeout)
    try:
        return engine.generate([Request((5, 6), 50)] * rows, SamplingParams(temperature=0.0))
    finally:
        engine.close()


@pytest.mark.parametrize("kind", MALFORMED)
def test_malformed_events_are_one_kind_of_error(server: Misbehaving, kind: str) -> None:
    server.stream = lambda: iter([MALFORMED[kind]])
    with pytest.raises(ServerLostError) as caught:
        generate(server)
    assert caught.value.code == "server_lost" and len(caught.value.completions) == 1


@pytest.mark.parametrize("kind", ENDLESS)
def test_endless_replies_end_in_time_and_memory(server: Misbehaving, kind: str) -> None:
    server.stream, began = ENDLESS[kind], time.monotonic()
    floods = kind in ("a line", "an event", "lines without data")  # until it is too long, and not until it is late
    with pytest.raises(ModelError) as caught:
        generate(server, timeout=10.0 if floods else 1.0)
    assert caught.value.code == ("server_lost" if floods else "server_timeout")
    assert time.monotonic() - began < 30 and server.sent < 64 << 20


def test_other_replies_are_bounded_too(server: Misbehaving) -> None:
    server.models = lambda: forever(b'{"data": [' + b" " * 65_536)
    with pytest.raises(ModelError) as caught:
        generate(server, timeout=10.0)
    assert caught.value.code == "invalid_reply" and server.sent < 64 << 20
    server.models = lambda: forever(b" ", 0.05)
    with pytest.raises(ModelError) as caught:
        generate(server, timeout=0.5)
    assert caught.value.code == "server_timeout"
    server.models, server.sent = Misbehaving().models, 0
    server.status = itertools.repeat(418)
    server.stream = lambda: forever(b"no " * 20_000)
    with pytest.raises(ModelError):
        generate(server, timeout=10.0)
    assert server.sent < 32 << 20


def test_nothing_is_unpacked(server: Misbehaving) -> None:
    server.headers = {"content-encoding": "gzip"}
    server.stream = lambda: iter([gzip.compress(event(OK) + event(END))])
    with pytest.raises(ServerLostError):
        generate(server)


def test_no_event_has_more_text_than_can_be_tokenized_at_once(server: Misbehaving) -> None:
    server.first = {"choices": [{"index": 0, "text": "a", "finish_reason": None}]}  # a server without token ids
    for size in (100, 40_000):
        server.stream = lambda size=size: iter([choice(text="x" * size), event(END)])  # type: ignore[misc]
        if size == 100:
            assert generate(server)[0].token_ids
        else:
            with pytest.raises(ServerLostError):
                generate(server)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 60_000,
        '{"error": ' + "[" * 60_000,
        '{"error": ' + "9" * 5_000 + "}",
        '{"error": "a\\u001b[2J\\u202eb\\nc"}',
        "a\x1b[2Jb",
    ],
    ids=lambda text: text[:16],
)
def test_reasons_of_refusals_are_one_plain_line(text: str) -> None:
    error = OpenAIClient("http://127.0.0.1:9")._error_from_status(400, "/x", text)
    assert isinstance(error, RefusedError) and str(error).isprintable() and len(str(error)) < 500


def test_names_that_a_terminal_obeys_are_no_models(server: Misbehaving) -> None:
    server.models = lambda: iter([json.dumps({"data": [{"id": "a\x1b[2J"}, {"id": "m"}]}).encode()])

    async def names() -> list[str]:
        client = OpenAIClient(server.url)
        try:
            return list(await client.list_models())
        finally:
            await client.close()

    assert asyncio.run(names()) == ["m"]


def test_a_reply_in_crumbs_takes_linear_time() -> None:
    class Reply:
        headers: ClassVar[dict[str, str]] = {}

        @property
        def content(self) -> Reply:
            return self

        async def readany(self) -> bytes:
            return b"x"

    with limited():
        assert len(asyncio.run(read_body(Reply(), 100_000, 60.0, cut=True))) == 100_000  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [1, 7, 1_000])
def test_only_line_ends_of_the_standard_split_lines(server: Misbehaving, size: int) -> None:
    text = "a\u2028b\u2029c\u0085d\x0be\x0cf"
    whole = b": hello\r\n" + event({"text": text})
    whole += b'data: {"text":\rdata: "two lines"}\r\n\r\nevent: x\n\ndata: [DONE]'
    decoder = EventDecoder()
    events = [data for at in range(0, len(whole), size) for data in decoder.feed(whole[at : at + size])]
    events += decoder.finish()
    assert [parse_event(data)["text"] for data in events[:-1]] == [text, "two lines"]
    assert events[-1] == "[DONE]"


def test_an_honest_server_that_writes_line_separators_is_read(server: Misbehaving) -> None:
    server.stream = lambda: iter([choice(text="\u2028", token_ids=[5]), choice(text="\x85", token_ids=[6]), event(END)])
    (completion,) = generate(server)
    assert completion.token_ids[:2] == (5, 6)


def test_one_lost_row_is_one_lost_row(server: Misbehaving) -> None:
    numbers = itertools.count()

    def stream() -> Iterator[bytes]:
        if next(numbers) == 0:  # the first row hangs up for ever, the others end well
            numbers_of_first.append(0)
            return iter([MALFORMED["a number"]])
        return iter([event(OK), event(END)])

    numbers_of_first: list[int] = []
    server.stream = stream
    done = generate(server, rows=3)
    assert [completion.finish_reason for completion in done] == ["stop"] * 3


def test_rows_that_end_well_are_kept_where_another_is_lost(server: Misbehaving) -> None:
    lock, failing = threading.Lock(), [0]

    def stream() -> Iterator[bytes]:
        with lock:
            failing[0] += 1
            first = failing[0] <= 1 or failing[0] > 3  # one of three, and all of its retries
        if first:
            return iter([MALFORMED["null"]])
        return iter([event(OK), event(OK), event(END)])

    server.stream = stream
    with pytest.raises(ServerLostError) as caught:
        generate(server, rows=3)
    assert sorted(completion.finish_reason or "" for completion in caught.value.completions)[-2:] == ["stop", "stop"]


def test_retry_after_is_kept(server: Misbehaving) -> None:
    server.status = itertools.chain([429], itertools.repeat(200))
    server.headers = {"retry-after": "1"}
    generate(server)
    assert server.asked[1] - server.asked[0] >= 1.0


def test_retry_after_is_read_where_it_is_a_number() -> None:
    client = OpenAIClient("http://127.0.0.1:9")
    for value, seconds in (("9" * 8, 86_400), ("3600", 3600)):
        error = client._error_from_status(503, "/x", "", value)
        assert isinstance(error, StreamError) and error.retry_after == seconds
    for value in ("", "-1", "Wed, 21 Oct 2015 07:28:00 GMT", "9" * 400, "nan"):
        error = client._error_from_status(503, "/x", "", value)
        assert isinstance(error, StreamError) and error.retry_after == 0


def test_keys_of_the_environment_go_where_they_belong(server: Misbehaving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TERSELY_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", "secret")

    def sent() -> str | None:
        server.keys.clear()
        client = OpenAIClient(server.url)

        async def ask() -> None:
            await client.list_models()
            await client.close()

        asyncio.run(ask())
        return server.keys[0]

    assert sent() is None
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    assert sent() == "Bearer secret"
    monkeypatch.setenv("TERSELY_API_KEY", "ours")
    assert sent() == "Bearer ours"
    for url in ("http://example.com/v1", "http://localhost.evil.example", "http://10.0.0.1:8000"):
        with pytest.raises(OptionError) as caught:
            OpenAIClient(url, "secret")
        assert caught.value.code == "insecure_key" and "secret" not in str(caught.value)
    OpenAIClient("https://example.com/v1", "secret")
    monkeypatch.delenv("TERSELY_API_KEY")
    OpenAIClient("http://example.com/v1")


def test_a_server_may_hang_up_once_it_is_done() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        body = event(OK) + b"data: [DONE]\n\n"
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n" % (len(body), body))
        await writer.drain()
        writer.close()  # without the last chunk

    async def read() -> list[dict[str, Any]]:
        async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
            client = OpenAIClient("http://{}:{}".format(*server.sockets[0].getsockname()), "")
            events = [one async for one in client.stream_events("/completions", {})]
            await client.close()
            return events

    assert asyncio.run(read()) == [OK]


def count_connections(url: str) -> int:
    """Sockets on this machine that are open to a server, by Linux's table of them."""
    port = f":{int(url.rpartition(':')[2].partition('/')[0]):04X}"
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()]
    return sum(row[2].endswith(port) and row[9] != "0" for row in rows)  # closed ones have no inode


def test_streams_that_are_cancelled_again_and_again_leave_no_connection(server: Misbehaving) -> None:
    server.stream = lambda: forever(event(OK), 0.002)
    client = OpenAIClient(server.url)

    async def read() -> None:
        async with aclosing(client.stream_events("/completions", {"stream": True, "max_tokens": 2})) as events:
            async for _ in events:
                pass

    async def count() -> tuple[int, int]:
        opened = 0
        tasks = [asyncio.create_task(read()) for _ in range(24)]
        for task in tasks:
            await asyncio.sleep(0.01)
            opened = max(opened, count_connections(server.url))
            for _ in range(3):
                task.cancel()
                await asyncio.sleep(0)
        await asyncio.wait(tasks)
        end = time.monotonic() + 10
        while (left := count_connections(server.url)) and time.monotonic() < end:
            await asyncio.sleep(0.05)
        await client.close()
        return opened, left

    opened, left = asyncio.run(count())
    assert opened > 0 == left


def test_a_connection_that_the_server_closed_while_the_loop_was_busy_is_not_used_again() -> None:
    closed = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        protocol_version, timeout = "HTTP/1.1", 0.1  # seconds for which it keeps an idle connection

        def log_message(self, *args: Any) -> None:
            pass

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(200)
            self.send_header("content-length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def finish(self) -> None:
            super().finish()
            closed.set()

    async def ask(url: str) -> None:
        client = OpenAIClient(url, "")
        for _ in range(3):
            closed.clear()
            assert await client.request("POST", "/completions", {}) == {}
            assert closed.wait(30)  # in the way of the loop
            time.sleep(0.1)
        await client.close()

    with serve_http(Handler) as url:
        asyncio.run(ask(url))


def test_nothing_but_the_key_says_who_asks(
    server: Misbehaving, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "netrc").write_text("default login me password secret\n")
    (tmp_path / "netrc").chmod(0o600)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))

    async def ask(key: str) -> None:
        client = OpenAIClient(server.url, key)
        await client.list_models()
        await client.close()

    for key, sent in (("", None), ("ours", "Bearer ours")):
        server.keys.clear()
        asyncio.run(ask(key))
        assert server.keys == [sent]
    with refused(OptionError, "invalid_url"):
        OpenAIClient(server.url.replace("://", "://me:secret@"), "")


def test_proxies_are_those_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "https_proxy", "NO_PROXY", "no_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    assert find_proxy("https://example.com/v1") is None
    monkeypatch.setenv("all_proxy", "http://proxy:1")
    monkeypatch.setenv("https_proxy", "http://proxy:2")
    assert find_proxy("https://example.com/v1") == "http://proxy:2"
    assert find_proxy("http://example.com:8000/v1") == "http://proxy:1"
    assert find_proxy("http://127.0.0.1:8000/v1") is None, "a key for this machine stays on it"
    monkeypatch.setenv("no_proxy", "example.com")
    assert find_proxy("https://example.com/v1") is None
    monkeypatch.setenv("https_proxy", "socks5://proxy:3")
    with refused(CapabilityError, "unsupported_proxy"):
        find_proxy("https://other.example/v1")


@pytest.mark.parametrize("kind", ["a broken chunk", "a server that reads nothing"])
def test_whatever_a_server_does_ends_within_the_timeout(kind: str) -> None:
    over = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer):
            if kind == "a broken chunk":
                await reader.readuntil(b"\r\n\r\n")
                writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
                writer.write(b"%x\r\n%s\r\n" % (len(event(OK)), event(OK)))
                await writer.drain()
                await asyncio.sleep(0.1)
                writer.write(b"zz\r\nfoo")
            await over.wait()

    async def read() -> None:
        async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
            client = OpenAIClient(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", "", timeout=1.0)
            async with asyncio.timeout(20):
                try:
                    async for _ in client.stream_events("/completions", {"prompt": "x" * 30_000_000}):
                        pass
                finally:
                    over.set()
                    await client.close()
                    await asyncio.sleep(0.1)

    with refused(ModelError, "server_timeout"):
        asyncio.run(read())


def test_what_is_left_open_is_closed_without_a_word(server: Misbehaving) -> None:
    script = f"""
import asyncio, logging
from tersely.controller.engines.openai.client import OpenAIClient
client = OpenAIClient({server.url!r}, "")
for _ in range(2):
    asyncio.run(client.list_models())
print(len(client._sessions))
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "1\n", "")


def test_events_of_any_form_raise_our_errors_only(server: Misbehaving) -> None:
    client = OpenAIClient(server.url)

    async def read() -> None:
        try:
            async with aclosing(client.stream_events("/completions", {"stream": True, "max_tokens": 2})) as events:
                async for _ in events:
                    pass
        finally:
            await client.close()

    for kind in MALFORMED.values():
        server.stream = lambda kind=kind: iter([kind])  # type: ignore[misc]
        try:
            asyncio.run(read())
        except (TerselyError, StreamError):
            continue
