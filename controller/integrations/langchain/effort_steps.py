"""The steps of an agent: what kind one is, and how a model is told the effort for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import BaseMessage, HumanMessage, ToolMessage

from ....errors import OptionError
from ...budgets import ALIASES, canonical_effort
from .chat_model import ChatTersely

STEPS = ("plan", "result", "error", "answer")
"""The first step after a question; one after a tool's result, or its error; one after results, with no tool to call."""

TABLE: Mapping[str, str] = {"plan": "hard", "result": "easy", "error": "normal", "answer": "normal"}

SPENT = "tersely_spent"
"""Under which key of an agent's state stands what has been spent."""

_ORDER = ("none", "easy", "normal", "hard")
_OPENAI_NAMES = {"easy": "low", "normal": "medium", "hard": "high"}


def classify_step(messages: Sequence[BaseMessage], tools: bool) -> str:
    """Which of `STEPS` comes next; tools: some can be called."""
    since: list[BaseMessage] = []
    for message in messages:
        since = [] if isinstance(message, HumanMessage) else [*since, message]
    results = [message for message in since if isinstance(message, ToolMessage)]
    if not results:
        return "plan"
    if not tools:
        return "answer"
    return "error" if results[-1].status == "error" else "result"


def effort_settings(model: BaseChatModel, effort: str) -> dict[str, Any]:
    """The `model_settings` that give a model an effort: ours for a ChatTersely, OpenAI's names for others.

    Raises OptionError for a model whose profile lists its levels, none of which means this effort.
    """
    if isinstance(model, ChatTersely):
        return {"effort": effort}
    name = _OPENAI_NAMES.get(effort, effort)
    levels = (model.profile or {}).get("reasoning_effort_levels")
    if levels is None or name in levels:
        return {"reasoning_effort": name}
    for level in levels:
        if ALIASES.get(level, level) == effort:
            return {"reasoning_effort": level}
    raise OptionError(
        f"the model has no reasoning effort that means {effort!r}; it has {', '.join(levels) or 'none'}; "
        "choose among these, or say how the model is told (settings)"
    )


def get_effort(model: BaseChatModel, settings: Mapping[str, Any]) -> str:
    """The effort that a model would be called with."""
    for name in ("effort", "reasoning_effort"):
        if given := settings.get(name) or getattr(model, name, None):
            return canonical_effort(str(given))
    return "hard"


def max_effort(state: Any) -> str | None:
    """The most effort that a budget allows the next step, None for any."""
    ceiling: str | None = (state.get(SPENT) or {}).get("ceiling")
    return ceiling


def min_effort(effort: str, ceiling: str | None) -> str:
    """The lower of two efforts; `auto` may come to any, so a ceiling takes its place."""
    if ceiling is None or effort == ceiling:
        return effort
    if effort not in _ORDER:
        return ceiling
    return _ORDER[min(_ORDER.index(effort), _ORDER.index(ceiling))]
