"""One conversation with a server, held by different clients that know nothing of tersely.

Each returns what was said: `plain`, `streamed`, `low` with effort low, `stopped` before "boxed", and the thinking of
`plain` where the client shows it. Sampling is greedy, so all clients have to be told the same. At the end each begins a
stream and leaves. With tools, `calls` are the names and arguments of the first reply.
"""

from __future__ import annotations

import asyncio
import gc
import json
import shutil
import subprocess
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest

PATIENCE = 180.0
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 240}
TOOL = {
    "name": "add",
    "description": "Add.",
    "parameters": {"type": "object", "properties": {"a": {"type": "number"}, "b": {"type": "number"}}},
}


class Address(NamedTuple):
    """Where a server is; `url` ends with /v1."""

    url: str
    model: str
    question: str
    key: str = "any"
    tools: bool = False


@cache  # the others are compared with it
def talk_by_openai(to: Address) -> dict[str, Any]:
    """OpenAI's client for Python."""
    import openai

    with openai.OpenAI(base_url=to.url, api_key=to.key, max_retries=0, timeout=PATIENCE) as client:

        def ask(**fields: Any) -> Any:
            messages = [{"role": "user", "content": to.question}]
            return client.chat.completions.create(model=to.model, messages=messages, **GREEDY, **fields)

        plain = ask().choices[0].message
        said = {
            "plain": plain.content,
            "thought": plain.reasoning_content,
            "low": ask(reasoning_effort="low").choices[0].message.content,
            "stopped": ask(stop="boxed").choices[0].message.content,
            "streamed": "".join(c.choices[0].delta.content or "" for c in ask(stream=True) if c.choices),
        }
        stream = ask(stream=True)
        next(iter(stream))
        stream.close()
        if to.tools:
            calls = ask(tools=[{"type": "function", "function": TOOL}]).choices[0].message.tool_calls
            said["calls"] = [[one.function.name, json.loads(one.function.arguments)] for one in calls]
    return said


def talk_by_langchain(to: Address) -> dict[str, Any]:
    """LangChain's ChatOpenAI, which does not show thinking."""
    chat_openai = pytest.importorskip("langchain_openai").ChatOpenAI

    def model(**fields: Any) -> Any:
        return chat_openai(model=to.model, base_url=to.url, api_key=to.key, max_retries=0, **GREEDY, **fields)

    said = {
        "plain": model().invoke(to.question).text,
        "low": model(reasoning_effort="low").invoke(to.question).text,
        "stopped": model(stop=["boxed"]).invoke(to.question).text,
        "streamed": "".join(chunk.text for chunk in model().stream(to.question)),
    }
    stream = model().stream(to.question)
    next(stream)
    stream.close()
    if to.tools:
        calls = model().bind_tools([{"type": "function", "function": TOOL}]).invoke(to.question).tool_calls
        said["calls"] = [[one["name"], one["args"]] for one in calls]
    return said


def talk_by_agents(to: Address) -> dict[str, Any]:
    """OpenAI's Agents SDK, by chat completions."""
    agents = pytest.importorskip("agents")
    import openai

    agents.set_tracing_disabled(True)
    calls: list[list[Any]] = []

    @agents.function_tool  # type: ignore[untyped-decorator]
    def add(a: float, b: float) -> float:
        """Add."""
        calls.append(["add", {"a": a, "b": b}])
        return a + b

    async def talk() -> dict[str, Any]:
        async with openai.AsyncOpenAI(base_url=to.url, api_key=to.key, max_retries=0, timeout=PATIENCE) as client:

            def agent(tools: list[Any] | None = None, **fields: Any) -> Any:
                settings = agents.ModelSettings(**GREEDY, **fields)
                model = agents.OpenAIChatCompletionsModel(to.model, client)
                return agents.Agent("a", model=model, model_settings=settings, tools=tools or [])

            async def ask(**fields: Any) -> str:
                result = await agents.Runner.run(agent(**fields), to.question)
                return str(result.final_output)

            said: dict[str, Any] = {
                "plain": await ask(),
                "low": await ask(reasoning=openai.types.shared.Reasoning(effort="low")),
                "stopped": await ask(extra_args={"stop": ["boxed"]}),
                "streamed": "",
            }
            async for event in agents.Runner.run_streamed(agent(), to.question).stream_events():
                if getattr(getattr(event, "data", None), "type", "") == "response.output_text.delta":
                    said["streamed"] += event.data.delta
            leaving = agents.Runner.run_streamed(agent(), to.question)
            async for _ in leaving.stream_events():
                leaving.cancel()
            if to.tools:
                with pytest.raises(agents.MaxTurnsExceeded):  # this model never stops calling
                    await agents.Runner.run(agent([add]), to.question, max_turns=1)
                said["calls"] = calls
            return said

    said = asyncio.run(talk())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # it leaves the connection of a stream that is cancelled open
        for _ in range(3):  # what finalizers of generators keep is found by the next one
            gc.collect()
    return said


def talk_by_ai_sdk(to: Address) -> dict[str, Any]:
    """Vercel's AI SDK, on Node."""
    node, folder = shutil.which("node"), _install_ai_sdk()
    arguments = [to.url, to.key, to.model, to.question, *(["tools"] if to.tools else [])]
    done = subprocess.run(
        [str(node), str(folder / "ai_sdk.mjs"), *arguments], capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode == 0, done.stderr[-2000:]
    said: dict[str, Any] = json.loads(done.stdout)
    return said


def _install_ai_sdk() -> Path:
    """A folder with the script and its packages, in the user's cache; skips the test where npm cannot install them."""
    folder = Path.home() / ".cache" / "tersely-tests" / "ai-sdk"
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(Path(__file__).with_name("ai_sdk.mjs"), folder)
    if not (folder / "node_modules" / "ai").exists():
        npm = shutil.which("npm")
        if npm is None:
            pytest.skip("the AI SDK needs Node with npm")
        packages = ("ai@7", "@ai-sdk/openai-compatible@3")
        command = [npm, "install", "--silent", "--no-save", "--prefix", str(folder), *packages]
        if subprocess.run(command, capture_output=True, timeout=PATIENCE).returncode:
            pytest.skip("npm cannot install the AI SDK")
    return folder


CLIENTS: dict[str, Callable[[Address], dict[str, Any]]] = {
    "openai": talk_by_openai,
    "langchain": talk_by_langchain,
    "agents": talk_by_agents,
    "ai-sdk": talk_by_ai_sdk,
}


def check_conversation(client: str, to: Address) -> None:
    """Hold the conversation by a client and by OpenAI's, and compare what was said."""
    expected = talk_by_openai(to)
    said = expected if client == "openai" else CLIENTS[client](to)
    assert said == {key: value for key, value in expected.items() if key in said}
    assert said["plain"] == said["streamed"] and said["low"]
    assert said["plain"].startswith(said["stopped"]) and "boxed" not in said["stopped"]
