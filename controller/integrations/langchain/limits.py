"""What a question may cost an agent, and what it has cost so far; plain values, no middleware."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage
from langchain_core.messages.utils import count_tokens_approximately

from ....errors import OptionError


@dataclass(frozen=True, slots=True)
class AgentLimits:
    """What a question may cost at most; None is without a limit.

    prices: model -> dollars for a million tokens (input, output); "*" stands for any other model.
    """

    tokens: int | None = None
    dollars: float | None = None
    seconds: float | None = None
    prices: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("tokens", "dollars", "seconds"):
            if (limit := getattr(self, name)) is not None and limit <= 0:
                raise OptionError(f"a budget of {limit} {name}; accepted: more than 0, or None for no limit")
        if self.dollars is not None and not self.prices:
            raise OptionError("a budget in dollars needs prices={model: (input, output)}, for a million tokens each")

    def price(self, model: str) -> tuple[float, float]:
        """Dollars for a million input and output tokens; raises OptionError for a model without a price."""
        found = self.prices.get(model, self.prices.get("*"))
        if found is None:
            raise OptionError(
                f"no price for the model {model!r}; there are those of {', '.join(self.prices)}; add it, or '*' for any"
            )
        return found

    def share(self, spent: Mapping[str, Any], now: float) -> tuple[float, str]:
        """How much of the scarcest budget is spent, and that in words."""
        used = {"tokens": spent["tokens"], "dollars": spent["dollars"], "seconds": now - spent["started"]}
        shares = [
            (used[name] / limit, f"{used[name]:.6g} of {limit:g} {name}")
            for name in used
            if (limit := getattr(self, name)) is not None
        ]
        return max(shares, default=(0.0, "no limit"))

    def added(self, spent: Mapping[str, Any], sent: Sequence[BaseMessage], message: AIMessage) -> dict[str, Any]:
        """What is spent with one more call."""
        read, written = read_and_written(sent, message)
        dollars = spent["dollars"]
        if self.dollars is not None:
            per_read, per_written = self.price(str(message.response_metadata.get("model_name", "")))
            dollars += (read * per_read + written * per_written) / 1e6
        return {**spent, "tokens": spent["tokens"] + read + written, "dollars": dollars}


def read_and_written(sent: Sequence[BaseMessage], message: AIMessage) -> tuple[int, int]:
    """Tokens that a call read and wrote, what tersely spent beside the text included.

    Usage that its model did not report is estimated from the texts.
    """
    usage: Mapping[str, Any] = message.usage_metadata or {
        "input_tokens": count_tokens_approximately(sent),
        "output_tokens": count_tokens_approximately([message]),
    }
    overhead = message.response_metadata.get("tersely", {}).get("usage", {}).get("overhead", 0)
    return max(0, usage["input_tokens"]), max(0, usage["output_tokens"]) + max(0, overhead)


def repeated_tool_call(messages: Sequence[BaseMessage], calls: Sequence[Mapping[str, Any]], most: int) -> str | None:
    """The name of a tool among `calls` that is called for the `most`-th time with the same arguments, or None.

    Counted are calls since the last message of the user.
    """
    seen: Counter[str] = Counter()
    for message in messages:
        if isinstance(message, HumanMessage):
            seen.clear()
        elif isinstance(message, AIMessage):
            seen.update(_mark(call) for call in message.tool_calls)
    for call in calls:
        seen[_mark(call)] += 1
        if seen[_mark(call)] >= most:
            return str(call["name"])
    return None


def _mark(call: Mapping[str, Any]) -> str:
    return json.dumps([call["name"], call["args"]], sort_keys=True, default=str)


def tool_results_text(messages: Sequence[BaseMessage], most: int = 2000) -> str:
    """What tools have said since the last message of the user, the latest last, in at most so many characters."""
    said: list[str] = []
    for message in messages:
        if isinstance(message, HumanMessage):
            said = []
        elif isinstance(message, ToolMessage) and message.text.strip():
            said.append(f"{message.name or 'tool'}: {message.text.strip()}")
    return "\n".join(said)[-most:]
