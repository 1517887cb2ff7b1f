"""The same conversation by different clients, with the development server."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tersely.controller.engines.transformers.engine import load_engine

from ..support.conversation import CLIENTS, Address, check_conversation
from ..support.serving import MODEL, QUESTION, Served, served
from ..support.text_engine import TextEngine, format_call

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with served(load_engine(MODEL)) as running:
        yield running


@pytest.fixture(scope="module")
def calling() -> Iterator[Served]:
    with served(TextEngine(lambda prompt: "I add.\n</think>\n\n" + format_call("add", a=12, b=7))) as running:
        yield running


@pytest.mark.parametrize("client", CLIENTS)
def test_clients_hold_the_same_conversation(client: str, server: Served) -> None:
    check_conversation(client, Address(f"{server.url}/v1", MODEL, QUESTION))


@pytest.mark.parametrize("client", CLIENTS)
def test_clients_get_tool_calls(client: str, calling: Served) -> None:
    said = CLIENTS[client](Address(f"{calling.url}/v1", MODEL, QUESTION, tools=True))
    assert said["calls"] == [["add", {"a": 12, "b": 7}]]
