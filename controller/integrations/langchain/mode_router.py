"""A learnt router: which mode a question needs, by a probe on what the model makes of it before it writes a word."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from langchain_core.messages import BaseMessage, HumanMessage

from ....errors import CapabilityError, OptionError
from ....probes.estimator import Single
from ...options import GenerationOptions
from ...probe_registry import load_mode_probe
from ...session import Session
from ...types import Engine, RoutedPrompt, State
from .runner import engine_lock, shared_engine
from .safety import get_sanitizer

LAYER = -1
"""The hidden layer that is read: the last one, which every engine that shows any has."""


class _LastHiddenState:
    """An opening that keeps the state it is shown, and goes on with the rest; implements `engines.base.Opening`."""

    layer, longest = LAYER, 1

    def __init__(self, rest: tuple[int, ...]) -> None:
        self.rest = rest
        self.state: State | None = None

    def choose(self, state: State) -> RoutedPrompt:
        """See `Opening.choose`."""
        self.state = state.copy()
        return RoutedPrompt(self.rest)


def prompt_hidden_states(session: Session, questions: Sequence[str]) -> Single:
    """The hidden state at the end of each question's prompt, [questions, width]; costs one token each.

    Raises CapabilityError where the engine shows none.
    """
    options = GenerationOptions(effort="normal", preset="off")
    if "hidden" not in session.engine.capabilities:
        raise CapabilityError(f"a router reads hidden states, which {session.engine.name!r} does not show")
    rows = session.prepare(list(questions), options)
    looks = [_LastHiddenState(row.request.prompt_ids[-1:]) for row in rows]
    requests = [
        replace(row.request, prompt_ids=row.request.prompt_ids[:-1], opening=look, max_new_tokens=1)
        for row, look in zip(rows, looks, strict=True)
    ]
    with engine_lock(session.engine):
        session.engine.generate(requests, options.sampling)
    return np.stack([np.asarray(look.state, np.float32) for look in looks])


class ModeRouter:
    """Says the mode for a conversation, by the latest question in it; for `ModeMiddleware`.

    model: by whose hidden states the probe was learnt, by name or loaded; folder: where `tersely agents --router-out`
    put it, None for the one released for this model. The model need not be the agent's own. Raises ProbeError if there
    is none, ArtifactError for a probe of another model.
    """

    def __init__(self, model: str | Engine | Session, folder: str | None = None) -> None:
        loaded: Any = shared_engine(model) if isinstance(model, str) else model
        self.session = loaded if isinstance(loaded, Session) else Session(loaded)
        self.probe = load_mode_probe(self.session.engine, folder, LAYER)

    def chances(self, question: str) -> dict[str, float]:
        """How likely each mode is the cheapest that will do."""
        (proba,) = self.probe.proba(prompt_hidden_states(self.session, [question]))
        return {mode: float(chance) for mode, chance in zip(self.probe.classes, proba, strict=True)}

    def __call__(self, messages: Sequence[BaseMessage]) -> str:
        """The mode for the latest question."""
        asked = [message.text for message in messages if isinstance(message, HumanMessage)]
        if not asked:
            raise OptionError("nobody has asked anything yet; a router needs a message of the user")
        neutralise = get_sanitizer(self.session.engine.tokenizer, self.session.markers)
        chances = self.chances(neutralise(asked[-1]))
        return max(chances, key=lambda mode: chances[mode])
