"""No door beside the key: one guard before every path of both servers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tersely.controller.engines.transformers.engine import load_engine
from tersely.controller.serving.auth_middleware import OPEN_PATHS, Access, hash_key
from tersely.controller.serving.errors import RequestError
from tersely.controller.serving.rules import ServerSettings
from tersely.controller.serving.vllm_server import SETTINGS_VARIABLE, ControlMiddleware
from tersely.controller.serving.vllm_translation import PATHS
from tersely.errors import OptionError, TerselyError

from ..support.serving import MODEL, Served, configured, served

KEY = "correct horse"
VLLM_PATHS = (
    "/invocations /tokenize /detokenize /generative_scoring /scale_elastic_ep /is_scaling_elastic_ep /docs /redoc "
    "/load /openapi.json /v1/chat/completions/batch /v1/systemone /v1/embeddings /inference/v1/generate /pause /sleep "
    "/rerank /v1/load_lora_adapter /pooling /score /classify /server_info /abort_requests /v1/realtime"
).split()
"""What vLLM serves, or may serve, beside what is under control."""


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with served(load_engine(MODEL), ServerSettings(configured(KEY)), api_key=KEY) as running:
        yield running


def test_every_path_but_health_needs_the_key(server: Served) -> None:
    paths = [
        "/v1/models",
        "/metrics",
        "/openapi.json",
        "/version",
        "/docs",
        "/",
        "//v1/models",
        "/V1/models",
        "/health/",
    ]
    with httpx.Client(base_url=server.url) as anonymous:
        for path in (*paths, *VLLM_PATHS, *PATHS):
            for method in ("GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH"):
                assert anonymous.request(method, path, content=b"{}").status_code == 401, (method, path)
        assert anonymous.get("/health").status_code == 200
        assert anonymous.get("/metrics", headers={"x-api-key": KEY}).status_code == 200
        assert anonymous.get("/metrics", headers={"authorization": f"bearer {KEY}"}).status_code == 200


@pytest.mark.parametrize(("access", "anonymous", "known"), [("key", 401, 200), ("open", 200, 200), ("off", 401, 404)])
def test_metrics_have_a_setting_of_their_own(access: str, anonymous: int, known: int) -> None:
    with served(load_engine(MODEL), ServerSettings(configured(KEY), metrics=access), api_key=KEY) as server:
        assert httpx.get(f"{server.url}/metrics").status_code == anonymous
        assert server.http.get("/metrics").status_code == known


def test_keys_are_compared_by_digests_of_one_length(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[Any, Any]] = []
    compare = "tersely.controller.serving.auth_middleware.hmac.compare_digest"

    def same(one: str, other: str) -> bool:
        compared.append((one, other))
        return one == other

    monkeypatch.setattr(compare, same)
    access = Access(lambda: {hash_key(KEY): ""})
    for key in ("", "x", KEY, KEY * 1000, "ÿ"):
        headers = [(b"authorization", b"Bearer " + key.encode("latin-1"))]
        scope = {"type": "http", "method": "GET", "path": "/v1/models", "headers": headers}
        if key == KEY:
            access.check(scope)
        else:
            with pytest.raises(RequestError):
                access.check(scope)
    assert {len(part) for pair in compared for part in pair} == {64}


async def reached(
    app: ControlMiddleware,
    path: str,
    method: str = "POST",
    headers: Any = (),
    kind: str = "http",
    content: bytes = b"{}",
    root: str = "",
) -> Any:
    """The first message that a client gets."""
    sent: list[Any] = []
    scope = {"type": kind, "method": method, "path": path, "headers": list(headers), "query_string": b""}
    scope["root_path"] = root

    async def receive() -> Any:
        return {"type": "http.request", "body": content} if kind == "http" else {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message)

    await app(scope, receive, send)
    return sent[0]


class Inner:
    """An application that answers whatever it is asked, and keeps the paths."""

    def __init__(self) -> None:
        self.paths: list[str] = []
        self.headers: list[tuple[bytes, bytes]] = []
        self.reply = b""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.paths.append(scope["path"])
        await send({"type": "http.response.start", "status": 200, "headers": list(self.headers)})
        await send({"type": "http.response.body", "body": self.reply})


Guarded = Callable[..., tuple[ControlMiddleware, Inner]]


@pytest.fixture
def guarded(monkeypatch: pytest.MonkeyPatch) -> Iterator[Guarded]:
    """Makes vLLM's middleware with some settings, before an application that answers everything."""
    made: list[ControlMiddleware] = []

    def make(**settings: Any) -> tuple[ControlMiddleware, Inner]:
        monkeypatch.setenv(SETTINGS_VARIABLE, json.dumps(settings))
        inner = Inner()
        made.append(ControlMiddleware(inner))
        return made[-1], inner

    yield make
    for app in made:
        app.traces.close()


BEARER = [(b"authorization", f"Bearer {KEY}".encode())]
X_API_KEY = [(b"x-api-key", KEY.encode())]


def test_nothing_of_vllm_is_reached_without_the_key(guarded: Guarded) -> None:
    app, inner = guarded(key=hash_key(KEY))
    for path in (*VLLM_PATHS, *PATHS, "/v1/models", "/metrics", "/version", "/", "/health/../invocations"):
        for headers in ((), [(b"authorization", KEY.encode())], [(b"x-api-key", b"wrong")]):
            assert asyncio.run(reached(app, path, headers=headers))["status"] == 401, path
    assert asyncio.run(reached(app, "/v1/realtime", kind="websocket")) == {"type": "websocket.close", "code": 1008}
    assert inner.paths == []
    for path in OPEN_PATHS:
        assert asyncio.run(reached(app, path, "GET"))["status"] == 200


def test_the_key_is_checked_before_a_deep_body(guarded: Guarded) -> None:
    app, inner = guarded(key=hash_key(KEY))
    for headers, status in (((), 401), (BEARER, 400)):
        reply = reached(app, "/v1/chat/completions", headers=headers, content=b'{"a":' + b"[" * 10_000)
        assert asyncio.run(reply)["status"] == status
    assert inner.paths == []


@pytest.mark.parametrize("headers", [BEARER, X_API_KEY])
def test_vllm_serves_what_is_under_control_and_what_an_operator_exposes(guarded: Guarded, headers: Any) -> None:
    app, inner = guarded(key=hash_key(KEY), exposed=["/tokenize"])
    for path in {*VLLM_PATHS} - {"/tokenize"}:
        assert asyncio.run(reached(app, path, headers=headers))["status"] == 404, path
    assert asyncio.run(reached(app, "/v1/realtime", headers=headers, kind="websocket"))["type"] == "websocket.close"
    assert inner.paths == []
    for path in ("/tokenize", "/v1/models", "/v1/models/tiny", "/v1/chat/completions", "/v1/messages"):
        assert asyncio.run(reached(app, path, headers=headers))["status"] == 200, path


def test_a_client_that_leaves_vllm_counts_as_one(guarded: Guarded, capfd: pytest.CaptureFixture[str]) -> None:
    app, inner = guarded()
    inner.headers, inner.reply = [(b"content-type", b"application/json")], b"null"  # what vLLM says then
    content = b'{"messages": []}'
    assert asyncio.run(reached(app, "/v1/chat/completions", content=content))["status"] == 200
    assert b'tersely_requests_total{status="499"} 1.0' in app.metrics.render()
    assert "Traceback" not in capfd.readouterr().err


def test_schemas_are_checked_before_vllm_reads_them(guarded: Guarded) -> None:
    app, inner = guarded()
    content = b'{"messages": [], "structured_outputs": {"json": {"minItems": 1e9}}}'
    assert asyncio.run(reached(app, "/v1/chat/completions", content=content))["status"] == 400
    assert inner.paths == []


def test_without_a_key_uncontrolled_paths_are_closed_too(guarded: Guarded) -> None:
    app, inner = guarded(metrics="off")
    for path in (*VLLM_PATHS, "/metrics"):
        assert asyncio.run(reached(app, path))["status"] == 404, path
    assert inner.paths == []


def test_a_line_of_the_log_is_one_short_plain_line(guarded: Guarded, capfd: pytest.CaptureFixture[str]) -> None:
    app, _ = guarded(key=hash_key(KEY))
    app.checked.log = "text"
    for headers in ((), [(b"x-request-id", b"a\x1b[2J")], [(b"x-request-id", b"a" * 9_000)]):
        asyncio.run(reached(app, "/v1/\x1b[2J\n\u2028" + "x" * 60_000, headers=headers))
        (line,) = capfd.readouterr().err.split("\n")[:-1]
        assert line.isprintable() and len(line) < 600 and "status=401" in line


def test_the_prefix_of_a_proxy_leads_past_no_control(guarded: Guarded) -> None:
    app, inner = guarded(key=hash_key(KEY))
    for path in PATHS:  # a body that only control refuses
        for whole in (path, f"/api{path}"):
            reply = reached(app, whole, headers=BEARER, content=b'{"tersely": 5}', root="/api")
            assert asyncio.run(reply)["status"] == 400, whole
    assert asyncio.run(reached(app, "/api/tokenize", headers=BEARER, root="/api"))["status"] == 404
    assert asyncio.run(reached(app, "/apihealth", root="/api"))["status"] == 401
    assert inner.paths == []


def test_a_preflight_needs_no_key_and_other_options_do(guarded: Guarded) -> None:
    app, _ = guarded(key=hash_key(KEY))
    asks = [(b"origin", b"https://example.com"), (b"access-control-request-method", b"POST")]
    assert asyncio.run(reached(app, "/v1/chat/completions", "OPTIONS", asks))["status"] == 200
    assert asyncio.run(reached(app, "/v1/chat/completions", "OPTIONS"))["status"] == 401


def test_a_configuration_reaches_vllm_with_its_keys(
    guarded: Guarded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEAM_KEY", "of-the-team")
    file = tmp_path / "server.toml"
    file.write_text('[keys.team]\nkey_env = "TEAM_KEY"\nown_policies = false\n')
    app, inner = guarded(config=str(file), key=hash_key(KEY))
    team = [(b"authorization", b"Bearer of-the-team")]
    own = json.dumps({"messages": [], "tersely": {"preset": "off"}}).encode()
    for headers, status in (((), 401), (team, 403), (BEARER, 200)):
        assert asyncio.run(reached(app, "/v1/chat/completions", headers=headers, content=own))["status"] == status
    file.write_text('[keys.team]\nkey_env = "TEAM_KEY"\n')
    app.config.reload()
    assert asyncio.run(reached(app, "/v1/chat/completions", headers=team, content=own))["status"] == 200
    assert len(inner.paths) == 2
    file.write_text("[models.tyni]\n[prices.tiny]\ninput = 1\noutput = 1")
    with pytest.raises(OptionError):
        guarded(config=str(file), models=["tiny"])
    for text in ('[[upstreams]]\nurl = "http://h"', '[defaults]\ntuned = "t.json"', '[defaults]\npolicies = ["deer"]'):
        file.write_text(text)
        with pytest.raises(TerselyError):
            guarded(config=str(file))
