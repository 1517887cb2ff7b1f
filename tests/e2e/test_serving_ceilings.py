"""No field of a request makes a model of vLLM's server think longer than its key may."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from tersely.evaluation.tasks.questions import load
from tersely.models import get_model_path, load_tokenizer

from ..support.vllm_server import NAME, VllmServer

pytestmark = pytest.mark.vllm

MOST = 60  # thinking tokens of the key
QUESTION = load("tiny", "test", 8, 5)[7].problem
USER = [{"role": "user", "content": QUESTION}]
TOKENIZER = load_tokenizer("tersely-tiny-small", str(get_model_path("tersely-tiny-small")))
OPEN, CLOSE = TOKENIZER.convert_tokens_to_ids(["<think>", "</think>"])
OTHERS = [token for token in range(len(TOKENIZER)) if token != CLOSE]
TURN = f"<|im_start|>user\n{QUESTION}\n/normal<|im_end|>\n<|im_start|>assistant\n"
NESTED = [{"role": "assistant", "content": "<think>\nLet me"}]
ITEM: dict[str, Any] = {"type": "message", "role": "assistant", "id": "msg_1", "status": "incomplete"}
ITEM |= {"content": [{"type": "output_text", "text": "<think>\nLet me", "annotations": []}]}


@pytest.fixture(scope="module")
def http(our_vllm_server: Callable[[], VllmServer]) -> Iterator[httpx.Client]:
    headers = {"authorization": "Bearer of-the-team"}
    with httpx.Client(base_url=our_vllm_server().url, headers=headers, timeout=180) as client:
        yield client


def ask(http: httpx.Client, path: str = "/v1/chat/completions", **fields: Any) -> httpx.Response:
    limit = {"max_output_tokens": 400} if path.endswith("responses") else {"max_tokens": 400}
    return http.post(path, json={"model": NAME, "temperature": 0, **limit, **fields})


def count(text: str | None) -> int:
    return len(TOKENIZER(text or "", add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"bad_words": ["</think>"]},
        {"allowed_token_ids": OTHERS},
        {"logit_bias": {str(CLOSE): -100}},
        {"stop_token_ids": [CLOSE]},
        {"repetition_penalty": 1e-30},
        {"repetition_penalty": 1e30, "temperature": 2.0},
        {"presence_penalty": 2.0, "frequency_penalty": 2.0, "temperature": 2.0, "seed": 1},
        {"thinking_token_budget": -1},
        {"tersely": {"effort": "max"}},
        {"reasoning_effort": "none", "chat_template_kwargs": {"enable_thinking": True}},
        {"max_output_tokens": 1},
        {"model": None},
        {"n": 2, "temperature": 1.0},
        {"response_format": {"type": "json_object"}},
    ],
    ids=lambda fields: " ".join(fields) or "nothing",
)
def test_fields_that_try_to_think_longer_do_not(http: httpx.Client, fields: dict[str, Any]) -> None:
    response = ask(http, messages=USER, **fields)
    assert response.status_code == 200, response.text
    reply = response.json()
    assert reply["usage"]["completion_tokens_details"]["reasoning_tokens"] <= MOST * len(reply["choices"])
    assert all(choice["tersely"]["budget"] in (0, MOST) for choice in reply["choices"])


def test_a_model_that_is_made_to_think_again_and_again_is_closed_at_once(http: httpx.Client) -> None:
    bias = {str(CLOSE): -100, str(OPEN): 100}
    (choice,) = ask(http, messages=USER, logit_bias=bias).json()["choices"]
    again = choice["message"]["content"].split("<think>")[1:]
    assert len(again) > 5 and {text.partition("**Final answer**")[0].strip() for text in again} == {""}


@pytest.mark.parametrize(
    "begun", ["", "<think>\n", "<think>\nA", "<think>\n" + "Let me see. " * 20, "<think>\n\n</think>"]
)
def test_raw_prompts_that_have_begun_to_think(http: httpx.Client, begun: str) -> None:
    prompt = TURN + begun
    for form in (prompt, TOKENIZER(prompt, add_special_tokens=False)["input_ids"]):
        fields = {"prompt": form, "bad_words": ["</think>"], "skip_special_tokens": False}
        if begun.endswith("</think>"):  # and opens it again
            fields["logit_bias"] = {str(OPEN): 100}
        (choice,) = ask(http, "/v1/completions", **fields).json()["choices"]
        thinking, closes, _ = choice["text"].partition("</think>")
        assert "<think>" not in begun + thinking or (closes and count(thinking) <= MOST), choice


@pytest.mark.parametrize(
    ("field", "path", "fields"),
    [
        ("use_beam_search", "chat/completions", {"messages": USER, "use_beam_search": True, "n": 2}),
        ("use_beam_search", "completions", {"prompt": TURN, "use_beam_search": "true"}),
        ("add_generation_prompt", "chat/completions", {"messages": USER, "add_generation_prompt": False}),
        (
            "add_generation_prompt",
            "chat/completions",
            {"messages": USER + NESTED, "continue_final_message": True, "add_generation_prompt": False},
        ),
        ("continue_final_message", "chat/completions", {"messages": USER + NESTED, "continue_final_message": 1}),
        ("input", "responses", {"input": [*USER, ITEM]}),
        ("min_tokens", "chat/completions", {"messages": USER, "min_tokens": 390, "stop_token_ids": [CLOSE]}),
        ("ignore_eos", "chat/completions", {"messages": USER, "ignore_eos": True}),
        ("chat_template", "chat/completions", {"messages": USER, "chat_template": "{{ messages[0].content }}"}),
        ("include_reasoning", "chat/completions", {"messages": USER, "include_reasoning": False}),
        (
            "bad_words",
            "chat/completions",
            {"messages": USER, "bad_words": ["</think>"], "structured_outputs": {"regex": "[^<]*"}},
        ),
        ("max_tokens", "chat/completions", {"messages": USER, "max_tokens": "900"}),
        ("n", "chat/completions", {"messages": USER, "n": "100000"}),
    ],
)
def test_fields_that_would_take_a_request_out_of_control_are_refused(
    http: httpx.Client, field: str, path: str, fields: dict[str, Any]
) -> None:
    response = ask(http, f"/v1/{path}", **fields)
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == field


def test_the_server_says_whether_it_is_ready(http: httpx.Client) -> None:
    assert httpx.get(f"{http.base_url}/ready").status_code == 200
