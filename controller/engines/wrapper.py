"""A base for engines that add something to another engine."""

from __future__ import annotations

from collections.abc import Sequence

from ..types import Completion, Engine, Request, SamplingParams, State, TokenSink


class EngineWrapper:
    """Passes everything on to `engine`; implements `types.Engine`. Override what differs."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.name, self.tokenizer = engine.name, engine.tokenizer
        self.capabilities, self.context_length = engine.capabilities, engine.context_length
        self.hidden_layers = engine.hidden_layers

    def generate(
        self, requests: Sequence[Request], sampling: SamplingParams, sink: TokenSink | None = None
    ) -> list[Completion]:
        """See `Engine.generate`."""
        return self.engine.generate(requests, sampling, sink)

    def hidden_states(self, prompts: Sequence[Sequence[int]], layer: int) -> list[State]:
        """See `Engine.hidden_states`."""
        return self.engine.hidden_states(prompts, layer)

    def fingerprint(self) -> str | None:
        """See `Engine.fingerprint`."""
        return self.engine.fingerprint()

    def close(self) -> None:
        """See `Engine.close`."""
        self.engine.close()
