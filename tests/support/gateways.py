"""Gateways to servers with only a chat endpoint, or with others, and questions to them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tersely.controller.serving.config import Upstream
from tersely.controller.serving.gateway import Thinking, check_rules, open_upstreams
from tersely.controller.serving.metrics import Metrics
from tersely.controller.serving.rules import LiveConfig, ServerSettings
from tersely.controller.serving.settings import ServerLimits

from .chat_servers import content, thinking
from .serving import Served, body, configured, running

GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 240}
SAID = [thinking("Three and "), thinking("four."), content("It is "), content("7.")]


@contextmanager
def gateway(*upstreams: dict[str, Any], live: LiveConfig | None = None, log: str = "off") -> Iterator[Served]:
    limits, metrics = ServerLimits(timeout=60), Metrics()
    found = [Upstream(**upstream) for upstream in upstreams]
    workers = open_upstreams(found, Path(), Thinking(), limits, metrics)
    live = live or configured()
    check_rules(live, workers)
    with running(ServerSettings(live, limits, log=log), workers, metrics) as server:
        yield server


def ask(server: Served, model: str = "talker", status: int = 200, **fields: Any) -> dict[str, Any]:
    response = server.http.post("/v1/chat/completions", json={**body(**{**GREEDY, **fields}), "model": model})
    assert response.status_code == status, response.text
    reply: dict[str, Any] = response.json()
    return {**reply, "headers": response.headers}
