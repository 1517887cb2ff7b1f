"""Requests to a vLLM in this process, from when they are handed over until they are answered."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import groupby
from typing import Any

from ..types import (
    KEEP,
    Completion,
    CompletionListener,
    Directive,
    FinishReason,
    Request,
    Signals,
    State,
    StepInfo,
    TokenSink,
)
from .request_controller import RequestController


class HiddenStateCapture:
    """Keeps the hidden state that the first token was sampled from."""

    def __init__(self, layer: int) -> None:
        self.layer = layer
        self.state: State | None = None

    def observe(self, token: int, seen: StepInfo | None = None) -> Directive:
        """See `Watcher.observe`."""
        if self.state is None and seen is not None:
            self.state = seen.state(self.layer)
        return KEEP


class VllmSequence:
    """One request on its way."""

    def __init__(self, index: int, name: str, request: Request, limit: int, end: tuple[int, ...]) -> None:
        self.index, self.name, self.request, self.limit, self.end = index, name, request, limit, end
        self.ids: list[int] = []
        self.finish: FinishReason | None = None
        self.driven: RequestController | None = None
        self._shown = 0
        self._chances: list[float] = []
        if request.watcher is not None or request.signals:
            wants = {"signals"} if request.signals else set()
            wants |= {"hidden"} if request.layers else set()
            self.driven = RequestController(request.watcher, end, frozenset(wants), measured=request.signals)

    @property
    def chances_wanted(self) -> bool:
        """Whether vLLM is to say how likely each sampled token was; a watcher would not hear it in time."""
        return self.request.signals and self.request.watcher is None

    def submit(self, engine: Any, params: Any) -> None:
        """Hand the request to vLLM."""
        from .worker_context import register

        if self.driven is not None:
            register(self.name, self.driven)
        engine.add_request(self.name, {"prompt_token_ids": list(self.request.prompt_ids)}, params)

    def take(self, output: Any, sink: TokenSink | None) -> None:
        """Take in what vLLM has put out so far."""
        done = output.outputs[0]
        self.ids = list(done.token_ids)
        if output.finished:
            self.finish = "length" if done.finish_reason == "length" else "stop"
            if self.driven is not None:
                self.driven.read(self.ids)
                if self.driven.stopped:
                    self.finish = "stopped"
            if self.chances_wanted:
                logs = zip(self.ids, done.logprobs, strict=True)
                self._chances = [math.exp(known[token].logprob) for token, known in logs]
            if self.ids and self.ids[-1] in self.end:
                self.ids.pop()
        if sink is not None:
            self._show(sink)

    def _show(self, sink: TokenSink) -> None:
        """Announce what is new, what was forced together in one piece: the next step knows whether it was."""
        known = len(self.ids) if self.driven is None or self.finish else min(len(self.ids), self.driven.settled)
        for forced, run in groupby(range(self._shown, known), self._forced):
            for ids in [[self.ids[place] for place in run]] if forced else ([self.ids[place]] for place in run):
                sink(self.index, tuple(ids), forced)
        self._shown = max(self._shown, known)

    def _forced(self, place: int) -> bool:
        forced = () if self.driven is None else self.driven.forced
        return place < len(forced) and forced[place]

    def tell(self) -> None:
        """Tell a watcher that wants to know what became of its row."""
        if isinstance(self.request.watcher, CompletionListener):
            self.request.watcher.ended(self.completion())

    def completion(self) -> Completion:
        """The output without the token that ended it."""
        forced = tuple(self._forced(place) for place in range(len(self.ids)))
        return Completion(tuple(self.ids), forced, self.finish or "length", signals=self._signals())

    def _signals(self) -> tuple[Signals | None, ...]:
        """Those of each token; None of one that was not seen before the row ended."""
        if self.driven is None or not self.request.signals:
            return ()
        seen = self.driven.signals[: len(self.ids)]
        seen = [*seen, *[None] * (len(self.ids) - len(seen))]
        if not self._chances:
            return tuple(seen)
        chances = self._chances[: len(seen)]
        return tuple(one and replace(one, chosen=chance) for one, chance in zip(seen, chances, strict=True))
