"""Agents on a chat model that follows a script."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.tools import tool
from pydantic import Field


@tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


class ScriptedChatModel(BaseChatModel):
    """A chat model that gives scripted replies.

    Attributes:
        script: the replies, of which the last is repeated, or a function of the messages.
        requests: the messages and settings of each call.
    """

    script: Any
    requests: list[Any] = Field(default_factory=list)
    model: str = "scripted"

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def bind_tools(self, tools: Sequence[Any], **kwargs: Any) -> Any:
        return self.bind(tools=[getattr(t, "name", str(t)) for t in tools], **kwargs)

    def _generate(self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **kwargs: Any) -> Any:
        index = len(self.requests)
        self.requests.append((messages, kwargs))
        message = self.script(messages) if callable(self.script) else self.script[min(index, len(self.script) - 1)]
        if isinstance(message, Exception):
            raise message
        return ChatResult(generations=[ChatGeneration(message=message.model_copy(deep=True))])


def reply(text: str, read: int = 10, written: int = 10, model: str = "scripted", **call: Any) -> AIMessage:
    """A reply that reports usage, with a call of `add` if arguments are given."""
    calls = [{"name": call.pop("tool", "add"), "args": call, "id": f"c{id(object())}"}] if call else []
    usage = {"input_tokens": read, "output_tokens": written, "total_tokens": read + written}
    return AIMessage(text, tool_calls=calls, usage_metadata=usage, response_metadata={"model_name": model})


def scripted(*script: Any, **options: Any) -> ScriptedChatModel:
    return ScriptedChatModel(script=list(script), **options)


QUESTION = {"messages": [HumanMessage("How much is 1 + 2?")]}


def run_agent(agent: Any, mode: str, question: Any = QUESTION, config: Any = None) -> dict[str, Any]:
    result = agent.invoke(question, config) if mode == "sync" else asyncio.run(agent.ainvoke(question, config))
    assert isinstance(result, dict)
    return result


sync_and_async = pytest.mark.parametrize("mode", ["sync", "async"])
