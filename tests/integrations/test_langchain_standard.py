"""LangChain's standard tests.

Their plugins for snapshots, timing and recorded traffic are replaced by the fixtures below.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("langchain_tests", reason="needs LangChain's standard tests: pip install langchain-tests")

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_tests.integration_tests import ChatModelIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests

from tersely.controller.integrations.langchain.chat_model import ChatTersely

from ..support.text_engine import TextEngine, format_call

MODEL = "tersely-tiny-small"


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def benchmark() -> Callable[[Callable[[], None]], None]:
    return lambda run: run()


@pytest.fixture
def vcr() -> None:
    """Nothing to record: the model runs in this process."""


@pytest.fixture
def snapshot() -> Callable[..., dict[str, Any]]:
    """The serialised model."""
    given = {"model": MODEL, "temperature": 0.0, "max_tokens": 100, "stop": []}
    kwargs = {**given, "effort": "normal", "preset": "balanced", "strategy": "tiers"}
    return lambda name: {
        "lc": 1,
        "type": "constructor",
        "id": ["tersely", "controller", "integrations", "langchain", "chat_model", "ChatTersely"],
        "kwargs": kwargs,
        "name": "ChatTersely",
    }


class _Embedded:
    """The embedded models do arithmetic only: they neither call tools nor write JSON."""

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatTersely

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"model": MODEL}

    @property
    def has_tool_calling(self) -> bool:
        return False  # its chat template has no tools, so bind_tools raises CapabilityError

    @property
    def has_tool_choice(self) -> bool:
        return False  # needs tools

    @property
    def has_structured_output(self) -> bool:
        return False  # it does not follow instructions

    @property
    def supports_json_mode(self) -> bool:
        return False

    @property
    def model_override_value(self) -> str:
        return "tersely-tiny-large"


class TestEmbeddedUnit(_Embedded, ChatModelUnitTests):
    @pytest.mark.xfail(reason="load accepts classes outside langchain-core and its partners only if they are listed")
    def test_serdes(self, model: BaseChatModel, snapshot: Any) -> None:
        super().test_serdes(model, snapshot)


@pytest.mark.anyio
class TestEmbedded(_Embedded, ChatModelIntegrationTests):
    @property
    def standard_chat_model_params(self) -> dict[str, Any]:
        return {"temperature": 0, "max_tokens": 70}

    @property
    def supported_usage_metadata_details(self) -> dict[Any, list[Any]]:
        return {"invoke": ["reasoning_output"], "stream": ["reasoning_output"]}

    def invoke_with_reasoning_output(self, *, stream: bool = False) -> AIMessage:
        model = ChatTersely(model=MODEL, temperature=0, max_tokens=300)
        question = "Compute (5 + 4) - 6."
        if not stream:
            return model.invoke(question)
        full = None
        for chunk in model.stream(question):
            full = chunk if full is None else full + chunk
        assert isinstance(full, AIMessage)
        return full


def _write(prompt: str) -> str:
    """Answer tool results in words, call the first tool, or write the JSON that was asked for."""
    question = prompt.rpartition("<|im_start|>user\n")[2].partition("<|im_end|>")[0]
    if "<tool_response>" in question:
        return "I see.\n</think>\n\nThe tool has said it."
    if "JSON" in question:
        return 'A joke.\n</think>\n\n{"setup": "Why do cats purr?", "punchline": "They can."}'
    if "<tools>" not in prompt:
        return "A greeting.\n</think>\n\nHello to you."
    tool = json.loads(prompt.partition("<tools>\n")[2].partition("\n")[0])["function"]
    quoted = re.search("'(.+?)'", question)
    word = quoted[1] if quoted else "San Francisco"
    properties = tool["parameters"]["properties"]
    arguments = {name: 3 if schema.get("type") == "integer" else word for name, schema in properties.items()}
    return f"A tool.\n</think>\n\n{format_call(tool['name'], **arguments)}"


class _Scripted:
    """A scripted model with a chat template for tools."""

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatTersely

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"model": TextEngine(_write), "preset": "off"}

    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def supports_model_override(self) -> bool:
        return False  # it cannot be loaded by name


class TestToolsUnit(_Scripted, ChatModelUnitTests):
    @pytest.mark.xfail(reason="as above")
    def test_serdes(self, model: BaseChatModel, snapshot: Any) -> None:
        super().test_serdes(model, snapshot)


@pytest.mark.anyio
class TestTools(_Scripted, ChatModelIntegrationTests):
    pass
