"""The difficulty probe as a decision model: what LangChain's own `ModelRouterMiddleware` asks which model to take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from langchain.agents.middleware import ModelRequest
from langchain_core.decisions import BaseDecisionModel, Choice, ChoiceAnswer, ClassifierResponse
from langchain_core.messages import BaseMessage, HumanMessage
from pydantic import Field, PrivateAttr

from ....errors import OptionError
from ...budgets import ALIASES, EFFORTS, canonical_effort
from ...options import GenerationOptions
from ...probe_registry import ProbeError
from ...prompts import as_messages
from ...session import Session
from ...text.tool_calls import supports_tools
from ...types import PromptRouter, RoutedPrompt, State
from .messages import as_prompt
from .runner import engine_lock, shared_engine
from .safety import get_sanitizer


class _PromptProbe:
    """An opening that keeps the hidden state it is shown; implements `engines.base.Opening`."""

    def __init__(self, inner: PromptRouter) -> None:
        self.inner, self.layer, self.longest = inner, inner.layer, inner.longest
        self.state: State | None = None

    def choose(self, state: State) -> RoutedPrompt:
        """See `PromptRouter.choose`."""
        self.state = state.copy()
        return replace(self.inner.choose(state), watcher=None)


class DifficultyDecision(BaseDecisionModel):
    """Answers `Choice` questions by how difficult the probe of a model takes the question at hand to be.

    model: the name of a model with a difficulty probe; engine: an `Engine` or `Session` of it that is loaded already.
    probes: folder of `tersely calibrate`, None for the released ones. routes: label -> the tiers it is meant for; where
    there are none, the labels must be tiers. The probe tells how likely each tier is the cheapest that will do; a
    label's probability is that of its tiers, the likeliest is chosen, and confidence is its probability. Costs one read
    of the question and one token.
    """

    engine: Any = Field(default=None, exclude=True)
    probes: str | None = None
    routes: Mapping[str, Sequence[str]] | None = None

    _session: Session | None = PrivateAttr(default=None)

    @property
    def _provider(self) -> str:
        return "tersely"

    def tier(self, state: Any) -> str:
        """The tier that is likeliest the cheapest that will do."""
        chances = self._read(state)[0]
        return max(chances, key=lambda tier: chances[tier])

    def _classify(self, state: Any, questions: Mapping[str, Any]) -> ClassifierResponse:
        for name, question in questions.items():
            if not isinstance(question, Choice):
                raise OptionError(f"question {name!r} is a {question.type}; a difficulty probe answers choices only")
        chances, tokens = self._read(state)
        answers = {name: self._answer(list(question.criteria), chances) for name, question in questions.items()}
        usage = {"input_tokens": tokens, "output_tokens": 1}
        return ClassifierResponse(model=self.model, answers=answers, usage=usage)

    def _answer(self, labels: list[str], chances: Mapping[str, float]) -> ChoiceAnswer:
        routes = self.routes
        if routes is None:
            routes = {label: (label,) for label in labels if label in EFFORTS or label in ALIASES}
        place = {canonical_effort(meant): label for label in labels for meant in routes.get(label, ())}
        if missing := sorted(set(chances) - set(place)):
            raise OptionError(
                f"no label of {', '.join(labels)} is meant for {', '.join(missing)}; give routes={{label: tiers}} that "
                f"cover {', '.join(sorted(chances))}"
            )
        shares = dict.fromkeys(labels, 0.0)
        for meant, chance in chances.items():
            shares[place[meant]] += chance
        chosen = max(labels, key=lambda label: shares[label])
        return ChoiceAnswer(type="choice", choice=chosen, probabilities=shares, confidence=min(1.0, shares[chosen]))

    def _read(self, state: Any) -> tuple[dict[str, float], int]:
        """How likely each tier is the cheapest that will do, and how many tokens were read."""
        session = self._loaded()
        options = GenerationOptions(effort="auto", preset="off", probes=self.probes)
        with engine_lock(session.engine):
            probe = session.learnt(options)[1]
            if probe is None:
                raise ProbeError(
                    f"there is no difficulty probe for {session.engine.name!r}; make one with `tersely collect` and "
                    "`tersely calibrate`, and give its folder (probes)"
                )
            (row,) = session.prepare([self._prompt(session, state)], options)
            assert row.request.opening is not None  # with a probe there is one
            look = _PromptProbe(row.request.opening)
            session.engine.generate([replace(row.request, opening=look, max_new_tokens=1)], options.sampling)
        assert look.state is not None
        proba = probe.network.proba(look.state[None])[0]
        chances = {name: float(chance) for name, chance in zip(probe.classes, proba, strict=True)}
        return chances, len(row.rendered.ids)

    def _prompt(self, session: Session, state: Any) -> list[dict[str, Any]]:
        """The question: a text, a message, messages, or a mapping that holds messages."""
        if isinstance(state, Mapping):
            state = state.get("messages", "")
        if isinstance(state, str):
            return as_messages(state)
        messages = [state] if isinstance(state, BaseMessage) else list(state)
        tokenizer = session.engine.tokenizer
        return as_prompt(messages, supports_tools(tokenizer), get_sanitizer(tokenizer, session.markers))

    def _loaded(self) -> Session:
        if isinstance(self.engine, Session):
            return self.engine
        if self._session is None:
            self._session = Session(self.engine or shared_engine(self.model))
        return self._session


def difficulty_decision(decision: DifficultyDecision, after: str = "easy") -> Any:
    """A function for `EffortMiddleware`: the probe's tier for a question, the effort `after` for each later step."""
    canonical_effort(after)

    def choose(request: ModelRequest[Any]) -> str:
        latest = request.messages[-1]
        return decision.tier([latest]) if isinstance(latest, HumanMessage) else after

    return choose
