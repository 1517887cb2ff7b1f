"""What clients may set over HTTP: numbers and flags within bounds, no files, nothing that is kept for ever."""

from __future__ import annotations

import gc
import json
import tracemalloc
from dataclasses import fields
from typing import Any
from unittest.mock import Mock

import pytest

from tersely.controller.policies import list_policies, make_policy
from tersely.controller.serving.errors import RequestError
from tersely.controller.serving.rules import RequestRules
from tersely.controller.serving.vllm_limits import check_request
from tersely.controller.serving.vllm_translation import translate
from tersely.controller.vllm.request_control import CLIENT_SETTINGS, KEY, read_control
from tersely.controller.vllm.worker_context import WorkerContext
from tersely.errors import OptionError

from ..support.cpu_limit import limited
from ..support.policy_feeding import Fed
from ..support.word_tokenizer import WordTokenizer


def asked(policies: Any) -> str:
    return json.dumps({"policies": policies})


REFUSED: list[Any] = [
    {"auto_exit": {"probes": "/etc"}},
    {"readiness": {"probes": "/nonexistent"}},
    {"readiness": {"probes": 5}},
    {"readiness": {"rule": {}}},
    {"escalate": {"probes": "/etc"}},
    {"hint": {"text": "x" * 3_000_000}},
    {"repetition": {"phrase": "x"}},
    {"trimr": {"cues": 5}},
    {"trimr": {"header": "x"}},
    {"plan": {"template": "{question.__class__}"}},
    {"budget": {"slack": "a"}},
    {"budget": {"slack": True}},
    {"budget": {"slack": 1.5}},
    {"budget": {"slack": -1}},
    {"budget": {"slack": 10**400}},
    {"budget": {"slack": None}},
    {"hint": {"beta": 1e308}},
    {"hint": {"beta": float("nan")}},
    {"hint": {"whole": 1}},
    {"repetition": {"tokens": 0}},
    {"no such policy": {"x": 1}},
]


@pytest.mark.parametrize("policies", REFUSED, ids=lambda policies: json.dumps(policies)[:40])
def test_other_settings_are_refused_with_status_400(policies: Any) -> None:
    with pytest.raises(OptionError):
        read_control(asked(policies))
    body = {"messages": [], "vllm_xargs": {KEY: asked(policies)}}
    with pytest.raises(RequestError) as caught:
        translate("/v1/chat/completions", body, RequestRules(), "1-1.1")
    assert caught.value.status == 400 and len(str(caught.value)) < 2_500


HUGE = {"type": "array", "minItems": 10**9}
WHOLE = {"type": "object", "properties": {"minItems": HUGE | {"minItems": 9_000}}}


@pytest.mark.parametrize(
    "fields",
    [
        {"structured_outputs": {"json": HUGE}},
        {"structured_outputs": {"json": json.dumps(HUGE)}},
        {"structured_outputs": {"json": "[" * 100_000}},
        {"structured_outputs": {"structural_tag": json.dumps({"format": {"json_schema": HUGE}})}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": HUGE}}},
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": HUGE}}]},
        {"text": {"format": {"type": "json_schema", "schema": {"anyOf": [{"maxItems": 5_001}] * 2}}}},
        {"output_config": {"format": {"schema": {"maxItems": 1e300}}}},
        {"response_format": {"maxItems": float("nan")}},
        {"response_format": {"maxItems": 10**400}},
    ],
    ids=lambda fields: json.dumps(fields)[:50],
)
def test_schemas_of_any_number_of_items_do_not_reach_vllm(fields: dict[str, Any]) -> None:
    with pytest.raises(RequestError) as caught:
        check_request(fields)
    assert caught.value.status == 400 and caught.value.code == "grammar_too_large"


LOOP = {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"allOf": [{"$ref": "#/$defs/a"}]}}, "$ref": "#/$defs/a"}
RECURSIVE = {
    "type": "object",
    "properties": {"schema": {"$ref": "#"}, "a/b": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}},
}


@pytest.mark.parametrize(
    "fields",
    [
        {"structured_outputs": {"json": {"$ref": "#"}}},
        {"structured_outputs": {"json": json.dumps(LOOP)}},
        {"structured_outputs": {"json": {"properties": {"a/b": {"items": {"$ref": "#/properties/a~1b/items"}}}}}},
        {"structured_outputs": {"structural_tag": json.dumps({"format": {"json_schema": {"$ref": "#"}}})}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"$ref": "#"}}}},
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": LOOP}}]},
        {"tools": [{"name": "f", "input_schema": LOOP}]},
        {"structured_outputs": {"grammar": 'root ::= root "a"'}},
        {"structured_outputs": {"grammar": 'root ::= b "a"\nb ::= root "c"'}},
        {"structured_outputs": {"grammar": "root ::= "}},
    ],
    ids=lambda fields: json.dumps(fields)[:60],
)
def test_what_only_refers_to_itself_does_not_reach_vllm(fields: dict[str, Any]) -> None:
    with pytest.raises(RequestError) as caught:
        check_request(fields)
    assert caught.value.status == 400 and caught.value.code == "endless_grammar"


def test_recursion_of_use_reaches_vllm() -> None:
    for schema in (
        RECURSIVE,
        {"$ref": "#/nowhere"},
        {"$ref": "http://x/y"},
        {"$ref": 5},
        {"anyOf": [RECURSIVE, {"$ref": "#"}]},
    ):
        check_request({"structured_outputs": {"json": schema}, "tools": [{"function": {"parameters": schema}}]})
    for grammar in (
        'root ::= root "a" | "a"',
        'root ::= "a" root',
        'root ::= root ? "a"',
        'root ::= b\nb ::= "c"',
        "x",
    ):
        check_request({"structured_outputs": {"grammar": grammar}})


def test_long_chains_of_references_take_no_time() -> None:
    chain = {str(n): {"$ref": f"#/$defs/{n + 1}"} for n in range(9_000)}
    with limited():
        check_request({"structured_outputs": {"json": {"$defs": chain, "$ref": "#/$defs/0"}}})


DEEP = "[" * 1_000


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 129},
        {"top_k": 1 << 70},
        {"seed": -(10**400)},
        {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": DEEP}}]}]},
        {"input": [{"type": "function_call", "name": "f", "arguments": DEEP}]},
    ],
    ids=lambda fields: json.dumps(fields)[:30],
)
def test_what_vllm_cannot_stand_does_not_reach_it(fields: dict[str, Any]) -> None:
    with pytest.raises(RequestError) as caught:
        check_request(fields)
    assert caught.value.status == 400


def test_requests_in_use_reach_vllm() -> None:
    call = {"function": {"name": "f", "arguments": '{"a": [1]}'}}
    check_request({"n": 128, "seed": (1 << 63) - 1, "messages": [{"tool_calls": [call]}, {"tool_calls": 5}, None]})
    check_request({"n": None, "messages": "text", "input": "text"})


def test_schemas_of_use_reach_vllm() -> None:
    check_request({"structured_outputs": {"json": json.dumps(WHOLE)}, "messages": [HUGE], "tools": [], "text": None})
    check_request({"structured_outputs": {"json": "{"}, "response_format": 5})


def test_deep_control_is_refused() -> None:
    for text in ("{" * 100_000, '{"policies":' + "[" * 100_000):
        with pytest.raises(OptionError):
            read_control(text)


def test_a_default_of_the_server_survives_as_text() -> None:
    for name in sorted(CLIENT_SETTINGS):
        control = read_control({"policies": {name: {}}})
        assert read_control(json.dumps(control.as_dict())) == control


def test_no_client_setting_names_a_text() -> None:
    assert set(CLIENT_SETTINGS) <= set(list_policies())
    for policy, settings in CLIENT_SETTINGS.items():
        types = {field.name: str(field.type) for field in fields(type(make_policy(policy)))}  # type: ignore[arg-type]
        assert set(settings) <= set(types)
        assert not [name for name in settings if "str" in types[name]]


@pytest.mark.parametrize("end", [0, 1])
@pytest.mark.parametrize("policy", sorted({*CLIENT_SETTINGS} - {"readiness", "trimr", "auto_exit"}))
def test_the_ends_of_all_bounds_work(policy: str, end: int) -> None:
    settings = {name: bound[end] for name, bound in CLIENT_SETTINGS[policy].items()}
    fed = Fed(make_policy(policy, settings), thinking=300)
    fed.feed("So x is 4.\n\nThus the answer is 4.\n\nWait, x is 4.\n\n" * 40)
    assert not [decision for decision in fed.controller.decisions if decision.action == "error"]


def test_workers_keep_a_bounded_number_of_policies() -> None:
    model = Mock(hf_text_config=Mock(num_hidden_layers=2))
    config = Mock(additional_config={KEY: {"markers": ["<think>", "</think>"]}}, model_config=model)
    context = WorkerContext(config)
    context.tokenizer = WordTokenizer()
    prompt = context.tokenizer("one two")["input_ids"]
    context.end = (0,)

    def serve(start: int, count: int) -> None:
        for number in range(start, start + count):
            control = asked({"repetition": {"window": number + 1}})
            assert context.make_controller({KEY: control}, prompt, 500) is not None

    def memory() -> int:
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    serve(0, 600)
    tracemalloc.start()
    try:
        serve(600, 100)
        before = memory()
        serve(700, 600)
        assert memory() < before + 100_000
    finally:
        tracemalloc.stop()
