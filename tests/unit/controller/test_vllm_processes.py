"""Decisions that come back from vLLM's workers: none is lost, however slow the process that listens is."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Iterator

import pytest

from tersely.controller.trace import Decision
from tersely.controller.vllm import processes
from tersely.controller.vllm.processes import TraceStore, send_trace

DECISIONS = [Decision("budget", "close", "used up", position) for position in range(30)]


@pytest.fixture
def store() -> Iterator[TraceStore]:
    opened = TraceStore()
    yield opened
    opened.close()


def test_what_was_sent_is_there_at_once(store: TraceStore) -> None:
    for _ in range(200):
        tag = store.tag()
        assert send_trace(tag, 0, DECISIONS[:3]) == 3
        assert store.take(tag) == {0: tuple(DECISIONS[:3])}
    assert store.take(tag) == {}


def test_samples_of_one_prompt_are_told_apart(store: TraceStore) -> None:
    tag, other = store.tag(), store.tag()
    for copy in (1, 0):
        send_trace(tag, copy, DECISIONS[copy:2])
    send_trace(other, 0, DECISIONS[:1])
    assert store.take(tag) == {0: tuple(DECISIONS[:2]), 1: tuple(DECISIONS[1:2])}
    assert store.take(other) == {0: tuple(DECISIONS[:1])}


def test_a_queue_that_is_full_loses_nothing(store: TraceStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_PATIENCE", 0.01)
    monkeypatch.setattr(store, "_receive", lambda: None)  # a listener that does not get to read
    tag, other = store.tag(), store.tag()
    while send_trace(other, 0, DECISIONS) == len(DECISIONS):
        pass
    (sender,) = (found for name, found in processes._SENDERS.items() if tag.startswith(f"{name}."))
    assert sender.gettimeout() == 0.01
    assert send_trace(tag, 0, DECISIONS) == 0 and sender.gettimeout() == 0.0, "only one row waits"
    monkeypatch.undo()
    sent = 0
    while sent < len(DECISIONS):
        sent = send_trace(tag, 0, DECISIONS, sent)
    assert store.take(tag) == {0: tuple(DECISIONS)}


def test_a_listener_that_is_gone_holds_up_no_worker() -> None:
    outer = TraceStore()  # owns the folder
    gone = TraceStore()
    tag = gone.tag()
    assert send_trace(tag, 0, DECISIONS[:1]) == 1
    gone.close()
    assert send_trace(tag, 0, DECISIONS, 1) == len(DECISIONS)
    outer.close()
    assert send_trace(tag, 0, DECISIONS) == len(DECISIONS)


def test_only_a_decision_that_is_too_long_is_lost(store: TraceStore) -> None:
    tag, long = store.tag(), Decision("mine", "note", "x" * (1 << 20), 1)
    assert send_trace(tag, 0, [DECISIONS[0], long, DECISIONS[1]]) == 3
    assert store.take(tag) == {0: (DECISIONS[0], DECISIONS[1])}


def test_a_default_timeout_of_sockets_changes_nothing() -> None:
    socket.setdefaulttimeout(0.05)
    try:
        with contextlib.closing(TraceStore()) as store:
            tag = store.tag()
            send_trace(tag, 0, DECISIONS[:1])
            assert store.take(tag) == {0: (DECISIONS[0],)}
            assert store.take(tag) == {}
    finally:
        socket.setdefaulttimeout(None)


def test_closing_waits_for_no_place_in_a_full_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    store = TraceStore()
    monkeypatch.setattr(processes, "_PATIENCE", 0.01)
    monkeypatch.setattr(store, "_receive", lambda: None)
    while send_trace(store.tag(), 0, DECISIONS) == len(DECISIONS):
        pass
    closing = threading.Thread(target=store.close, daemon=True)
    closing.start()
    closing.join(10)
    assert not closing.is_alive()


def test_messages_of_others_are_dropped(store: TraceStore) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as stranger:
        for message in (b"", b"{", b"[]", b"7", json.dumps({"tag": "x"}).encode()):
            stranger.sendto(message, str(store._place))
    tag = store.tag()
    send_trace(tag, 0, DECISIONS[:1])
    assert store.take(tag) == {0: (DECISIONS[0],)}
