"""Requests to a vLLM in this process, from submission to completion."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import groupby
from typing import Any

from ..types import (
    KEEP,
    Capability,
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

    def observe(self, token: int, step: StepInfo | None = None) -> Directive:
        """See `Watcher.observe`."""
        if self.state is None and step is not None:
            self.state = step.state(self.layer)
        return KEEP


class VllmSequence:
    """One request in flight."""

    def __init__(self, index: int, name: str, request: Request, limit: int, end: tuple[int, ...]) -> None:
        self.index, self.name, self.request, self.limit, self.end = index, name, request, limit, end
        self.ids: list[int] = []
        self.finish: FinishReason | None = None
        self.controller: RequestController | None = None
        self._shown = 0
        self._probabilities: list[float] = []
        if request.watcher is not None or request.signals:
            reads = {Capability.LOGIT_SIGNALS} if request.signals else set()
            reads |= {Capability.HIDDEN_STATES} if request.layers else set()
            self.controller = RequestController(request.watcher, end, frozenset(reads), keep_signals=request.signals)

    @property
    def wants_logprobs(self) -> bool:
        """Whether vLLM should report the probability of each token; for a watcher it would come too late."""
        return self.request.signals and self.request.watcher is None

    def submit(self, engine: Any, params: Any) -> None:
        """Submit the request to vLLM."""
        from .worker_context import register

        if self.controller is not None:
            register(self.name, self.controller)
        engine.add_request(self.name, {"prompt_token_ids": list(self.request.prompt_ids)}, params)

    def update(self, output: Any, sink: TokenSink | None) -> None:
        """Process the output of vLLM so far."""
        done = output.outputs[0]
        self.ids = list(done.token_ids)
        if output.finished:
            self.finish = "length" if done.finish_reason == "length" else "stop"
            if self.controller is not None:
                self.controller.read(self.ids)
                if self.controller.stopped:
                    self.finish = "stopped"
            if self.wants_logprobs:
                logs = zip(self.ids, done.logprobs, strict=True)
                self._probabilities = [math.exp(known[token].logprob) for token, known in logs]
            if self.ids and self.ids[-1] in self.end:
                self.ids.pop()
        if sink is not None:
            self._show(sink)

    def _show(self, sink: TokenSink) -> None:
        """Announce new tokens, those that were forced together in one piece: the next step knows which were."""
        known = len(self.ids) if self.controller is None or self.finish else min(len(self.ids), self.controller.settled)
        for forced, run in groupby(range(self._shown, known), self._forced):
            for ids in [[self.ids[place] for place in run]] if forced else ([self.ids[place]] for place in run):
                sink(self.index, tuple(ids), forced)
        self._shown = max(self._shown, known)

    def _forced(self, place: int) -> bool:
        forced = () if self.controller is None else self.controller.forced
        return place < len(forced) and forced[place]

    def notify(self) -> None:
        """Notify a watcher that listens for the completion."""
        if isinstance(self.request.watcher, CompletionListener):
            self.request.watcher.on_finish(self.completion())

    def completion(self) -> Completion:
        """The output without the token that ended it."""
        forced = tuple(self._forced(place) for place in range(len(self.ids)))
        return Completion(tuple(self.ids), forced, self.finish or "length", signals=self._signals())

    def _signals(self) -> tuple[Signals | None, ...]:
        """Those of each token; None of one that was not seen before the row ended."""
        if self.controller is None or not self.request.signals:
            return ()
        seen = self.controller.signals[: len(self.ids)]
        seen = [*seen, *[None] * (len(self.ids) - len(seen))]
        if not self._probabilities:
            return tuple(seen)
        chances = self._probabilities[: len(seen)]
        return tuple(one and replace(one, chosen=chance) for one, chance in zip(seen, chances, strict=True))
