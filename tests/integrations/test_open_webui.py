"""The filter for Open WebUI, between it and a real server; with open-webui installed, loaded as Open WebUI does."""

from __future__ import annotations

import asyncio
import runpy
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import tersely

from ..support.serving import MODEL, Served, body, chunks_of, served

FILE = Path(__file__).parents[2] / "examples" / "integrations" / "open_webui_filter.py"
REAL = find_spec("open_webui") is not None
pytestmark = [pytest.mark.filterwarnings("default")] if REAL else []  # Open WebUI's imports warn


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with served(tersely.load_engine(MODEL)) as running:
        yield running


@pytest.fixture
def plugin() -> Any:
    if not REAL:
        return runpy.run_path(str(FILE))["Filter"]()
    from open_webui.utils.plugin import load_function_module_by_id

    loaded, kind, described, _ = asyncio.run(load_function_module_by_id("tersely", FILE.read_text("utf-8")))
    assert kind == "filter" and described["title"] == "tersely"
    return loaded


def through(server: Served, plugin: Any, user: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    """A request that went through the filter, with the model as Open WebUI keeps it."""
    model = {"openai": server.http.get("/v1/models").json()["data"][0]}
    sent: dict[str, Any] = plugin.inlet(body(temperature=0, max_tokens=300, **fields), user, model)
    return sent


def test_valves_reach_the_server(server: Served, plugin: Any) -> None:
    plugin.valves = plugin.Valves(reasoning_effort="low", preset="budget")
    reply = server.http.post("/v1/chat/completions", json=through(server, plugin)).json()["choices"][0]["tersely"]
    assert reply["tier"] == "easy"
    plugin.valves = plugin.Valves(thinking_tokens=40, preset="off")
    reply = server.http.post("/v1/chat/completions", json=through(server, plugin)).json()["choices"][0]["tersely"]
    assert reply["budget"] <= 40 and [d["policy"] for d in reply["decisions"]] == ["budget"]
    plugin.valves = plugin.Valves(thinking_tokens=40, reasoning_effort="low")
    chosen = {"valves": plugin.UserValves(reasoning_effort="none")}
    sent = through(server, plugin, user=chosen)
    assert sent["reasoning_effort"] == "none" and "thinking_token_budget" not in sent
    reply = server.http.post("/v1/chat/completions", json=sent).json()
    assert reply["choices"][0]["tersely"]["tier"] == "none"


def test_other_models_and_requests_with_settings_are_left_alone(server: Served, plugin: Any) -> None:
    plugin.valves = plugin.Valves(reasoning_effort="low", preset="budget")
    request = body()
    for model in (None, {}, {"openai": {"id": MODEL}}, {"openai": None}):
        assert plugin.inlet(body(), None, model) == request
    assert "reasoning_effort" not in through(server, plugin, thinking_token_budget=50)
    assert through(server, plugin, reasoning_effort="high") == body(
        temperature=0, max_tokens=300, reasoning_effort="high"
    )
    plugin.valves = plugin.Valves(reasoning_effort="low", models=f"other, {MODEL}")
    assert plugin.inlet(body())["reasoning_effort"] == "low"


def test_a_reply_says_what_it_cost(server: Served, plugin: Any) -> None:
    plugin.valves = plugin.Valves(thinking_tokens=40)
    sent = through(server, plugin, stream=True, stream_options={"include_usage": True})
    with server.http.stream("POST", "/v1/chat/completions", json=sent) as response:
        events = [plugin.stream(event) for event in chunks_of(response.iter_lines())]
    usage: dict[str, Any] = {}
    for event in events:
        usage = {**usage, **(event.get("usage") or {})}
    thought = usage["completion_tokens_details"]["reasoning_tokens"]
    message = {"role": "assistant", "content": "79", "usage": usage}
    shown: list[Any] = []

    async def emit(event: dict[str, Any]) -> None:
        shown.append(event)

    done = {"messages": [{"role": "user", "content": "?"}, dict(message)]}
    assert asyncio.run(plugin.outlet(done, emit))["messages"][1] == message
    (status,) = shown
    assert status["type"] == "status" and status["data"]["done"]
    text = status["data"]["description"]
    answered = usage["completion_tokens"] - thought
    assert text.startswith(f"{thought} thinking and {answered} answer tokens, {40 - thought} of the budget saved")
    assert "budget: " in text
    usage = {**usage, "completion_tokens": None, "tersely": {"budget": thought - 1, "ended": "by itself"}}
    asyncio.run(plugin.outlet({"messages": [{"usage": usage}]}, emit))
    text = shown.pop()["data"]["description"]
    assert text.startswith(f"{thought} thinking and 0 answer tokens, 0 of the budget saved")
    silent: list[dict[str, Any]] = [{"messages": []}, {"messages": [{"usage": {"completion_tokens": 3}}]}, {}]
    for quiet in silent:
        assert asyncio.run(plugin.outlet(dict(quiet), emit)) == quiet
    plugin.valves = plugin.Valves(show_usage=False)
    asyncio.run(plugin.outlet(done, emit))
    assert len(shown) == 1


@pytest.mark.skipif(not REAL, reason="open-webui is not installed")
def test_open_webui_calls_it_so(plugin: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own code passes the parameters by their names, and merges what the stream adds to the usage."""
    from open_webui.utils import filter as filters
    from open_webui.utils.response import merge_usage

    async def find(*_: Any, **__: Any) -> Any:
        return plugin

    async def valves(*_: Any) -> dict[str, Any]:
        return {"tersely": {"reasoning_effort": "low"}}

    monkeypatch.setattr(filters, "get_function_module", find)
    monkeypatch.setattr(filters.Functions, "get_function_valves_by_ids", valves)

    def run(kind: str, data: dict[str, Any]) -> dict[str, Any]:
        extra: dict[str, Any] = {
            "__model__": {"openai": {"tersely": {}}},
            "__event_emitter__": None,
            "__request__": None,
        }
        functions = [SimpleNamespace(id="tersely")]
        result, _ = asyncio.run(filters.process_filter_functions(None, None, functions, kind, data, extra))
        return result  # type: ignore[no-any-return]

    assert run("inlet", body())["reasoning_effort"] == "low"
    event = {"choices": [{"tersely": {"budget": 50, "decisions": []}}]}
    merged = merge_usage(run("stream", event)["usage"], {"prompt_tokens": 5, "completion_tokens": 9})
    assert merged["tersely"] == {"budget": 50, "ended": "by itself"} and merged["output_tokens"] == 9
    assert run("outlet", {"messages": [{"usage": merged}]})["messages"] == [{"usage": merged}]
