"""What the server refuses, with which status and which field."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tersely.controller.engines.transformers.engine import TransformersEngine, load_engine
from tersely.controller.serving.rules import ServerSettings
from tersely.controller.serving.settings import ServerLimits

from ..support.serving import MODEL, QUESTION, Served, body, configured, error_of, served

KEY = "correct horse"


@pytest.fixture(scope="module")
def engine() -> TransformersEngine:
    return load_engine(MODEL)


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    limits = ServerLimits(batch=4, prompt=200, body=20_000)
    with served(
        load_engine(MODEL), ServerSettings(configured(ceilings={"max_tokens": 256}), limits, ("127.0.0.1", "localhost"))
    ) as running:
        yield running


FIELDS: list[tuple[dict[str, Any], str, str]] = [
    ({"reasoning_effort": "hgih"}, "reasoning_effort", "'high'"),
    ({"reasoning_effort": 3}, "reasoning_effort", "is 3"),
    ({"tersely": {"preset": "balancd"}}, "tersely.preset", "'balanced'"),
    ({"tersely": {"policies": ["budgte"]}}, "tersely.policies", "'budget'"),
    ({"tersely": {"policies": ["budget", "budget"]}}, "tersely.policies", "budget, budget"),
    ({"tersely": {"policies": ["hint"], "preset": "fast"}}, "tersely.policies", "tersely.preset"),
    ({"tersely": {"polices": []}}, "tersely.polices", "'policies'"),
    ({"tersely": {"policies": ["escalate"]}}, "tersely", "helper"),
    ({"tersely": {"effort": "low"}, "reasoning_effort": "high"}, "reasoning_effort", "'low'"),
    ({"tersely": {"shadow": True}, "thinking_token_budget": 60}, "thinking_token_budget", "shadow"),
    ({"reasoning_efort": "low"}, "reasoning_efort", "'reasoning_effort'"),
    ({"temperature": "hot"}, "temperature", "is 'hot'"),
    ({"temperature": -1}, "temperature", "is -1"),
    ({"temperature": True}, "temperature", "is True"),
    ({"top_p": 0}, "top_p", "greater than 0"),
    ({"n": 9}, "n", "less than or equal to 8"),
    ({"n": 5}, "n", "accepted: at most 4"),
    ({"seed": 1.5}, "seed", "is 1.5"),
    ({"max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
    ({"max_tokens": 257}, "max_tokens", "accepted: at most 256"),
    ({"max_completion_tokens": 300}, "max_completion_tokens", "accepted: at most 256"),
    ({"thinking_token_budget": -1}, "thinking_token_budget", "greater than or equal to 0"),
    ({"thinking": {"type": "enabled"}}, "thinking", "required"),
    ({"thinking": {"type": "on"}}, "thinking.type", "'disabled'"),
    ({"response_format": {"type": "json_object"}}, "response_format", "json_object"),
    ({"logprobs": True}, "logprobs", "is True"),
    ({"presence_penalty": 0.5}, "presence_penalty", "is 0.5"),
    ({"stop": ["a", "b", "c", "d", "e"]}, "stop", "at most 4"),
    ({"stop": ""}, "stop", "at least 1"),
    ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools", "tools"),
    ({"tool_choice": "required"}, "tool_choice", "'required'"),
    ({"stream": "yes"}, "stream", "is 'yes'"),
    ({"messages": []}, "messages", "at least 1"),
    ({"messages": "hello"}, "messages", "is 'hello'"),
    ({"messages": [{"role": "usr", "content": "x"}]}, "messages[0].role", "is 'usr'"),
    ({"messages": [{"role": "user", "content": "x", "colour": 1}]}, "messages[0].colour", "field"),
    ({"messages": [{"role": "user", "content": " "}]}, "messages", "empty"),
    ({"messages": [{"role": "user", "content": QUESTION * 9}]}, "messages", "accepted: at most 200"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
        "messages[0].content[0].type",
        "'image_url'",
    ),
]


@pytest.mark.parametrize(("fields", "param", "value"), FIELDS, ids=[json.dumps(f)[:50] for f, _, _ in FIELDS])
@pytest.mark.parametrize("stream", [False, True])
def test_a_field_is_refused(server: Served, fields: dict[str, Any], param: str, value: str, stream: bool) -> None:
    error = server.refused(**{"stream": stream, **fields})
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert value in error["message"]


def test_contradictory_limits_are_refused(server: Served) -> None:
    error = server.refused(max_tokens=100, max_completion_tokens=101)
    assert "max_tokens and max_completion_tokens" in error["message"]
    budgets: dict[str, Any] = {"thinking_token_budget": 60, "thinking": {"type": "enabled", "budget_tokens": 61}}
    assert server.refused(**budgets)["param"] == "thinking.budget_tokens"


def test_the_schema_names_the_model(server: Served) -> None:
    schemas = httpx.get(f"{server.url}/openapi.json").json()["components"]["schemas"]
    for name in ("ChatRequest", "ResponsesRequest"):
        assert schemas[name]["properties"]["model"]["enum"] == ["tersely-tiny-small"]


def test_an_unknown_model_is_not_found(server: Served) -> None:
    error = server.refused(404, model="tersely-tiny-smal")
    assert (error["param"], error["code"]) == ("model", "model_not_found")
    assert "'tersely-tiny-small'" in error["message"]
    assert error_of(server.http.post("/v1/chat/completions", json={"messages": []}), 400)["code"] == "missing"
    error_of(server.http.get("/v1/models/gpt-9"), 404)


BODIES = [b"", b"{", b"[]", b"null", b'"x"', b"\xff\xfe", b'{"model": "a", "messages": [' + b"[" * 9000, b"{'a': 1}"]


@pytest.mark.parametrize("content", BODIES)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses"])
def test_bodies_that_are_not_json_objects_are_refused(server: Served, path: str, content: bytes) -> None:
    response = server.http.post(path, content=content, headers={"content-type": "application/json"})
    assert error_of(response, 400)["type"] == "invalid_request_error"


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", None])
def test_other_content_types_are_refused(server: Served, kind: str | None) -> None:
    headers = {} if kind is None else {"content-type": kind}
    response = server.http.post("/v1/chat/completions", content=json.dumps(body()).encode(), headers=headers)
    assert "application/json" in error_of(response, 400)["message"]


@pytest.mark.parametrize("text", ["\ud800", "a\udfffb"])
def test_lone_surrogates_are_refused(server: Served, text: str) -> None:
    for fields in ({"messages": [{"role": "user", "content": text}]}, {"metadata": {"a": text}}):
        content = json.dumps(body(**fields)).encode()
        headers = {"content-type": "application/json"}
        error_of(server.http.post("/v1/chat/completions", content=content, headers=headers), 400)


def test_large_bodies_are_refused_with_and_without_content_length(server: Served) -> None:
    large = json.dumps(body("x" * 30_000)).encode()
    headers = {"content-type": "application/json"}
    error = error_of(server.http.post("/v1/chat/completions", content=large, headers=headers), 413)
    assert "20000 bytes" in error["message"]
    pieces = (large[start : start + 1000] for start in range(0, len(large), 1000))
    error_of(server.http.post("/v1/chat/completions", content=pieces, headers=headers), 413)
    assert server.http.get("/health").status_code == 200


def test_unknown_paths_and_methods(server: Served) -> None:
    assert "GET /v1/nothing" in error_of(server.http.get("/v1/nothing"), 404)["message"]
    response = server.http.get("/v1/chat/completions")
    error_of(response, 405)
    assert response.headers["allow"] == "POST"


def test_other_host_headers_are_refused(server: Served) -> None:
    response = server.http.get("/v1/models", headers={"host": "evil.example:80"})
    assert "evil.example" in error_of(response, 403)["message"]
    assert server.http.get("/v1/models", headers={"host": "localhost:1"}).status_code == 200


def test_there_are_no_cors_headers(server: Served) -> None:
    headers = {"origin": "http://evil.example", "access-control-request-method": "POST"}
    response = server.http.options("/v1/chat/completions", headers=headers)
    assert response.status_code == 405
    assert not [name for name in response.headers if name.startswith("access-control")]


def test_the_api_key_is_required(engine: TransformersEngine) -> None:
    with (
        served(engine, ServerSettings(configured(KEY)), api_key=KEY) as running,
        httpx.Client(base_url=running.url) as anonymous,
    ):
        assert running.http.get("/v1/models").status_code == 200
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": KEY}, {"x-api-key": "wrong"}):
            for path in ("/v1/models", "/metrics"):
                response = anonymous.get(path, headers=headers)
                error = error_of(response, 401)
                assert (error["type"], error["code"]) == ("authentication_error", "invalid_api_key")
                assert response.headers["www-authenticate"] == "Bearer" and KEY not in response.text
        assert anonymous.post("/v1/chat/completions", json=body()).status_code == 401
        assert anonymous.get("/v1/models", headers={"x-api-key": KEY}).status_code == 200
        assert [anonymous.get(path).status_code for path in ("/health", "/ready", "/version")] == [200, 200, 401]


NEEDS_THINKING: list[dict[str, Any]] = [
    {"reasoning_effort": "low"},
    {"thinking_token_budget": 100},
    {"thinking": {"type": "enabled", "budget_tokens": 100}},
    {"tersely": {"preset": "fast"}},
    {"tersely": {"shadow": True}},
]


def test_efforts_are_refused_for_a_model_that_does_not_think() -> None:
    engine = load_engine(MODEL)
    engine.tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    with served(engine, ServerSettings(configured(ceilings={"max_tokens": 30})), thinks=False) as running:
        for fields in NEEDS_THINKING:
            assert running.refused(**fields)["param"].startswith(next(iter(fields)))
        reply = running.answered(reasoning_effort="none")
        assert reply["choices"][0]["message"]["content"]
        assert reply["usage"]["completion_tokens_details"]["reasoning_tokens"] == 0
        assert running.http.get("/v1/models").json()["data"][0]["tersely"]["thinks"] is False


def test_errors_of_the_chat_template_are_quoted() -> None:
    engine = load_engine(MODEL)
    refusing = "{% if messages[0].role == 'system' %}{{ raise_exception('no system here') }}{% endif %}"
    engine.tokenizer.chat_template = refusing + str(engine.tokenizer.chat_template)
    with served(engine) as running:
        messages = [{"role": "system", "content": "x"}, {"role": "user", "content": QUESTION}]
        error = running.refused(messages=messages)
        assert error["param"] == "messages" and "no system here" in error["message"]
        assert running.answered(reasoning_effort="none")["choices"]


def test_tools_are_rendered_by_the_chat_template() -> None:
    engine = load_engine(MODEL)
    telling = "{% if tools %}{% for t in tools %}{{ t.function.name }} {% endfor %}{% endif %}"
    engine.tokenizer.chat_template = telling + str(engine.tokenizer.chat_template)
    tools = [{"type": "function", "function": {"name": "look up the answer in the book"}}]
    with served(engine) as running:
        plain = running.answered(reasoning_effort="none")["usage"]["prompt_tokens"]
        with_tools = running.answered(reasoning_effort="none", tools=tools)["usage"]["prompt_tokens"]
        off = running.answered(reasoning_effort="none", tools=tools, tool_choice="none")["usage"]["prompt_tokens"]
        assert with_tools > plain == off
