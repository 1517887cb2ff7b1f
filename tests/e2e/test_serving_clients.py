"""Unmodified clients against a real server."""

from __future__ import annotations

import asyncio
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tersely.controller.engines.transformers.engine import load_engine

from ..support.serving import MODEL, QUESTION, Served, served

openai = pytest.importorskip("openai")
MESSAGES = [{"role": "user", "content": QUESTION}]


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with served(load_engine(MODEL)) as running:
        yield running


@pytest.fixture
def client(server: Served) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as client:
        yield client


def chat(client: Any, **fields: Any) -> Any:
    return client.chat.completions.create(model=MODEL, messages=MESSAGES, seed=1, **fields)


def test_openai_chat(client: Any) -> None:
    reply = chat(client, reasoning_effort="low")
    (choice,) = reply.choices
    assert "boxed" in choice.message.content and choice.finish_reason == "stop"
    assert choice.message.reasoning == choice.message.reasoning_content
    assert reply.usage.completion_tokens_details.reasoning_tokens > 0
    assert choice.tersely["tier"] == "easy"
    listed = client.models.list().data[0]
    assert listed.id == MODEL == client.models.retrieve(MODEL).id
    assert 0 < max(listed.tersely["efforts"].values()) < listed.max_model_len


def test_openai_chat_stream(client: Any) -> None:
    whole = chat(client, reasoning_effort="low").choices[0].message
    chunks = list(chat(client, reasoning_effort="low", stream=True, stream_options={"include_usage": True}))
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    assert "".join(d.content or "" for d in deltas) == whole.content
    assert "".join(getattr(d, "reasoning_content", "") or "" for d in deltas) == whole.reasoning_content
    assert chunks[-1].usage.completion_tokens_details.reasoning_tokens > 0
    assert chunks[-2].choices[0].finish_reason == "stop"


def test_openai_extra_body(client: Any) -> None:
    fields = {"thinking_token_budget": 50, "tersely": {"policies": ["hint"], "trace": True}}
    metadata = chat(client, extra_body=fields).choices[0].tersely
    assert metadata["budget"] == 50 and metadata["usage"]["thinking"] <= 50
    assert metadata["decisions"][-1]["policy"] == "budget"


def test_openai_errors(client: Any) -> None:
    with pytest.raises(openai.BadRequestError) as bad:
        chat(client, reasoning_effort="hgih")
    assert (bad.value.param, bad.value.type) == ("reasoning_effort", "invalid_request_error")
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="tersely-tiny-smal", messages=MESSAGES)
    assert missing.value.code == "model_not_found"


def test_openai_async_stream_can_be_closed_early(server: Served) -> None:
    async def ask() -> int:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="any") as client:
            stream = await client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True)
            async for _ in stream:
                break
            await stream.close()
            reply = await client.chat.completions.create(model=MODEL, messages=MESSAGES, reasoning_effort="none")
            return int(reply.usage.completion_tokens_details.reasoning_tokens)

    assert asyncio.run(ask()) == 0


def respond(client: Any, effort: str, **fields: Any) -> Any:
    given = {"model": MODEL, "input": QUESTION, "reasoning": {"effort": effort}, "extra_body": {"seed": 1}}
    return client.responses.create(**given, **fields)


def test_openai_responses(client: Any) -> None:
    reply = respond(client, "low", instructions="Be brief.", metadata={"a": "b"})
    thought, message = reply.output
    assert (thought.type, message.type, reply.status) == ("reasoning", "message", "completed")
    assert "boxed" in reply.output_text and len(thought.content[0].text) > 10
    assert reply.usage.output_tokens_details.reasoning_tokens > 0
    assert (reply.instructions, reply.metadata, reply.reasoning.effort) == ("Be brief.", {"a": "b"}, "low")
    assert reply.tersely["tier"] == "easy"
    silent = respond(client, "none")
    assert [item.type for item in silent.output] == ["message"]
    again = client.responses.create(model=MODEL, input=[*reply.output, {"role": "user", "content": QUESTION}])
    assert again.usage.input_tokens > reply.usage.input_tokens


def test_openai_responses_stream(client: Any) -> None:
    whole = respond(client, "low")
    events = list(respond(client, "low", stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert [e.type for e in events[:4]] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    final = events[-1].response
    assert events[-1].type == "response.completed" and final.output_text == whole.output_text
    for kind, place in (("reasoning_text", 0), ("output_text", 1)):
        deltas = "".join(e.delta for e in events if e.type == f"response.{kind}.delta")
        (done,) = [e for e in events if e.type == f"response.{kind}.done"]
        assert deltas == done.text == final.output[place].content[0].text == whole.output[place].content[0].text
    assert len([e for e in events if e.type == "response.output_item.done"]) == 2


def test_openai_responses_stream_helper(client: Any) -> None:
    with client.responses.stream(model=MODEL, input=QUESTION, reasoning={"effort": "low"}) as stream:
        for _ in stream:
            pass
        assert "boxed" in stream.get_final_response().output_text


def test_openai_responses_for_clients_that_store_nothing(client: Any) -> None:
    stateless: dict[str, Any] = {"store": False, "include": ["reasoning.encrypted_content"]}
    reply = respond(client, "low", **stateless)
    again = client.responses.create(
        model=MODEL, input=[*reply.output, {"role": "user", "content": QUESTION}], **stateless
    )
    assert again.usage.input_tokens > reply.usage.input_tokens


def test_openai_responses_can_be_incomplete(client: Any) -> None:
    reply = respond(client, "none", max_output_tokens=3)
    assert (reply.status, reply.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    *_, last = respond(client, "none", max_output_tokens=3, stream=True)
    assert last.type == "response.incomplete" and last.response.output_text == reply.output_text


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"input": [{"type": "computer_call_output", "call_id": "c", "output": "x"}]}, "input[0]"),
    ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0].type"),
    ({"reasoning": {"effort": "hgih"}}, "reasoning.effort"),
    ({"previous_response_id": "resp_1"}, "previous_response_id"),
    ({"background": True}, "background"),
    ({"include": ["message.output_text.logprobs"]}, "include[0]"),
    ({"text": {"format": {"type": "json_schema", "name": "x", "schema": {}}}}, "text.format.type"),
    ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
    ({"max_output_tokens": 0}, "max_output_tokens"),
]


@pytest.mark.parametrize(("fields", "param"), REFUSED)
def test_openai_responses_refuses(client: Any, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as bad:
        client.responses.create(**{"model": MODEL, "input": QUESTION, **fields})
    assert bad.value.param == param


def test_langchain(server: Served) -> None:
    chat_openai = pytest.importorskip("langchain_openai").ChatOpenAI
    settings: dict[str, Any] = {
        "model": MODEL,
        "base_url": f"{server.url}/v1",
        "api_key": "any",
        "reasoning_effort": "low",
        "seed": 1,
    }
    model = chat_openai(**settings)
    reply = model.invoke(QUESTION)
    assert "boxed" in reply.content
    assert reply.usage_metadata["output_token_details"]["reasoning"] > 0
    assert "".join(chunk.content for chunk in model.stream(QUESTION)) == reply.content
    assert [r.content for r in model.batch([QUESTION, QUESTION])] == [reply.content] * 2
    del settings["seed"]  # the Responses API knows none
    answers = chat_openai(**settings, use_responses_api=True, output_version="responses/v1").invoke(QUESTION)
    assert "boxed" in answers.text


def test_the_example(server: Served, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["openai_client.py", f"{server.url}/v1"])
    runpy.run_path(str(Path(__file__).parents[2] / "examples" / "openai_client.py"), run_name="__main__")
    out = capsys.readouterr().out
    assert "low: " in out and "boxed" in out
