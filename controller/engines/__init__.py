"""Running models behind one contract, `controller.types.Engine`."""

from __future__ import annotations

from collections.abc import Sequence

from ..types import Completion, Engine, Request, SamplingParams, TokenSink


class EngineWrapper:
    """A base for engines that add something to another one, to which it passes everything on."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.name, self.tokenizer, self.context_length = engine.name, engine.tokenizer, engine.context_length
        self.capabilities, self.hidden_layers = engine.capabilities, engine.hidden_layers
        self.hidden_states, self.fingerprint, self.close = engine.hidden_states, engine.fingerprint, engine.close

    def generate(
        self, requests: Sequence[Request], sampling: SamplingParams, sink: TokenSink | None = None
    ) -> list[Completion]:
        return self.engine.generate(requests, sampling, sink)
