"""Choosing a model or a mode from the hidden state of the prompt, before a word is written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from langchain.agents.middleware import ModelRequest
from langchain_core.decisions import BaseDecisionModel, Choice, ChoiceAnswer, ClassifierResponse
from langchain_core.messages import BaseMessage, HumanMessage
from numpy.typing import NDArray
from pydantic import Field

from ....errors import CapabilityError, OptionError
from ...budgets import ALIASES, EFFORTS, canonical_effort
from ...options import GenerationOptions
from ...probe_registry import ProbeError, load_mode_probe
from ...prompts import as_messages
from ...request_builder import RequestBuilder
from ...session import Session
from ...text.sanitizer import get_sanitizer
from ...text.tool_calls import supports_tools
from ...types import Capability, Engine
from .. import get_runner, shared_engine
from .messages import as_prompt

LAYER = -1  # the hidden layer that mode probes read: the last one, which every engine with hidden states has


class DifficultyDecision(BaseDecisionModel):
    """Answers `Choice` questions with the difficulty probe, by one read; for LangChain's `ModelRouterMiddleware`.

    The probe estimates the probability that each tier is the cheapest sufficient one. A label's probability is the sum
    over its tiers; the most probable label is chosen, with its probability as confidence.
    """

    engine: Any = Field(default=None, exclude=True)  # an `Engine` or `Session` of the model, if it is already loaded
    probes: str | None = None  # folder of `tersely calibrate`; None uses the released probes
    routes: Mapping[str, Sequence[str]] | None = None  # the tiers of each label; None if the labels are tiers

    @cached_property
    def _session(self) -> Session:
        return _open_session(self.engine or self.model)

    @property
    def _provider(self) -> str:
        return "tersely"

    def tier(self, state: Any) -> str:
        """The tier that is most probably the cheapest sufficient one."""
        probabilities, _ = self._predict(state)
        return max(probabilities, key=probabilities.__getitem__)

    def _classify(self, state: Any, questions: Mapping[str, Any]) -> ClassifierResponse:
        for name, question in questions.items():
            if not isinstance(question, Choice):
                raise OptionError(f"question {name!r} is a {question.type}; a difficulty probe answers choices only")
        probabilities, tokens = self._predict(state)
        answers = {name: self._answer(list(question.criteria), probabilities) for name, question in questions.items()}
        usage = {"input_tokens": tokens, "output_tokens": 0}
        return ClassifierResponse(model=self.model, answers=answers, usage=usage)

    def _answer(self, labels: list[str], probabilities: Mapping[str, float]) -> ChoiceAnswer:
        routes = self.routes
        if routes is None:
            routes = {label: (label,) for label in labels if label in EFFORTS or label in ALIASES}
        label_by_tier = {canonical_effort(tier): label for label in labels for tier in routes.get(label, ())}
        if missing := sorted(set(probabilities) - set(label_by_tier)):
            raise OptionError(
                f"none of the labels {', '.join(labels)} stands for {', '.join(missing)}; pass routes={{label: tiers}} "
                f"that cover {', '.join(sorted(probabilities))}",
                code="incomplete_routes",
            )
        sums = dict.fromkeys(labels, 0.0)
        for tier, probability in probabilities.items():
            sums[label_by_tier[tier]] += probability
        choice = max(labels, key=lambda label: sums[label])
        return ChoiceAnswer(type="choice", choice=choice, probabilities=sums, confidence=min(1.0, sums[choice]))

    def _predict(self, state: Any) -> tuple[dict[str, float], int]:
        """The probability of each tier, and how many tokens were read."""
        session = self._session
        options = GenerationOptions(effort="auto", preset="off", probes=self.probes)
        probe = session.resolve(options).tier_probe
        if probe is None:
            raise ProbeError(
                f"{session.engine.name!r} has no difficulty probe; make one with `tersely collect` and "
                "`tersely calibrate`, and pass its folder as probes="
            )
        prompt = self._as_prompt(session, state)
        session.prepare([prompt], GenerationOptions(effort=probe.tiers[-1], preset="off"))  # raises if it is too long
        builder = RequestBuilder(session.engine, session.codec, session.markers, options, ())
        with get_runner(session.engine).lock:
            ((ids, hidden),) = builder.read_questions([prompt], probe)
        return _by_name(probe.classes, probe.network.proba(hidden[None])[0]), len(ids)

    def _as_prompt(self, session: Session, state: Any) -> list[dict[str, Any]]:
        """The question: a text, a message, messages, or a mapping with messages."""
        if isinstance(state, Mapping):
            state = state.get("messages", "")
        if isinstance(state, str):
            return as_messages(state)
        messages = [state] if isinstance(state, BaseMessage) else list(state)
        tokenizer = session.engine.tokenizer
        return as_prompt(messages, supports_tools(tokenizer), get_sanitizer(tokenizer, session.markers))


def difficulty_decision(decision: DifficultyDecision, after: str = "easy") -> Callable[[ModelRequest[Any]], str]:
    """A function for `EffortMiddleware`: the probe's tier for a question, the effort `after` for each later step."""
    canonical_effort(after)

    def choose(request: ModelRequest[Any]) -> str:
        latest = request.messages[-1]
        return decision.tier([latest]) if isinstance(latest, HumanMessage) else after

    return choose


class ModeRouter:
    """Chooses the mode for a conversation by one read of its latest question; for `ModeMiddleware`.

    `folder` is of `tersely agents --router-out`; None uses the released probe. Raises ProbeError for a model without a
    mode probe, ArtifactError for another model's, CapabilityError for an engine without hidden states.
    """

    def __init__(self, model: str | Engine | Session, folder: str | None = None) -> None:
        self.session = _open_session(model)
        self.probe = load_mode_probe(self.session.engine, folder, LAYER)

    def predict(self, question: str) -> dict[str, float]:
        """The probability that each mode is the cheapest sufficient one."""
        (proba,) = self.probe.network.proba(prompt_hidden_states(self.session, [question]))
        return _by_name(self.probe.classes, proba)

    def __call__(self, messages: Sequence[BaseMessage]) -> str:
        """The mode for the latest question."""
        questions = [message.text for message in messages if isinstance(message, HumanMessage)]
        if not questions:
            raise OptionError("the conversation has no user message to choose a mode by; add one", code="no_question")
        sanitize = get_sanitizer(self.session.engine.tokenizer, self.session.markers)
        probabilities = self.predict(sanitize(questions[-1]))
        return max(probabilities, key=probabilities.__getitem__)


def prompt_hidden_states(session: Session, questions: Sequence[str]) -> NDArray[np.float32]:
    """The states before the last token of each question's prompt, [questions, width]; raises CapabilityError."""
    engine = session.engine
    if Capability.HIDDEN_STATES not in engine.capabilities:
        raise CapabilityError(f"engine {engine.name!r} does not expose hidden states, which a router reads")
    rows = session.prepare(list(questions), GenerationOptions(effort="normal", preset="off"))
    with get_runner(engine).lock:
        return np.stack(engine.hidden_states([row.request.prompt_ids[:-1] for row in rows], LAYER))


def _by_name(names: Sequence[str], probabilities: NDArray[np.floating]) -> dict[str, float]:
    return {name: float(probability) for name, probability in zip(names, probabilities, strict=True)}


def _open_session(model: Any) -> Session:
    """A session on a model given by name, as an engine, or as a session."""
    return model if isinstance(model, Session) else Session(shared_engine(model))
