"""How requests to vLLM's server are translated."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tersely.controller.serving.config import Rules
from tersely.controller.serving.errors import RequestError
from tersely.controller.serving.rules import LiveConfig, RequestRules
from tersely.controller.serving.vllm_translation import (
    _MASKS,
    CHAT,
    COMPLETIONS,
    HELD,
    MESSAGES,
    RESPONSES,
    translate,
)

BODY = {"messages": [{"role": "user", "content": "1 + 1"}], "max_tokens": 4096}


def ask(path: str, **fields: Any) -> Any:
    return translate(path, {**BODY, **fields}, RequestRules(), "1-1.1")


@pytest.mark.parametrize(("effort", "tier"), [("low", "easy"), ("medium", "normal"), ("high", "hard"), ("max", "hard")])
def test_efforts_of_anthropic_clients_are_heard(effort: str, tier: str) -> None:
    mapping = ask(MESSAGES, output_config={"effort": effort, "format": None})
    assert mapping.control.effort == tier
    assert mapping.control.thinking_budget == ask(CHAT, reasoning_effort=effort).control.thinking_budget
    assert mapping.body["output_config"] == {"effort": effort, "format": None}


def test_an_effort_of_the_field_tersely_wins() -> None:
    assert ask(MESSAGES, output_config={"effort": "low"}, tersely={"effort": "hard"}).control.effort == "hard"
    assert ask(MESSAGES).control.effort == "normal"


def test_an_unknown_effort_names_its_field() -> None:
    with pytest.raises(RequestError) as caught:
        ask(MESSAGES, output_config={"effort": "huge"})
    assert caught.value.param == "output_config.effort"


def under(rules: dict[str, Any], path: str = CHAT, **fields: Any) -> Any:
    live = LiveConfig(Rules.model_validate(rules))
    return translate(path, {**BODY, **fields}, live.rules("m"), "1-1.1")


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"reasoning_effort": "max"},
        {"thinking_token_budget": -1},
        {"thinking_token_budget": 3000},
        {"thinking": {"type": "enabled", "budget_tokens": 3000}},
        {"tersely": {"preset": "off"}},
        {"tersely": {"policies": []}},
        {"tersely": {"policies": ["hint"]}},
        {"vllm_xargs": {"tersely": "off"}},
        {"vllm_xargs": {"tersely": json.dumps({"shadow": True, "thinking_budget": 3000})}},
    ],
    ids=str,
)
@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, RESPONSES])
def test_no_field_passes_the_ceiling(path: str, fields: dict[str, Any]) -> None:
    control = under({"ceilings": {"thinking_tokens": 500}}, path, **fields).control
    assert control.make_budget("hard", 4096).thinking <= 500 and not control.shadow
    assert any(policy.name == "budget" for policy in control.make_policies())
    sent = under({"ceilings": {"thinking_tokens": 500}}, path, thinking_token_budget=90).control
    assert path == COMPLETIONS or sent.make_budget("hard", 4096).thinking == 90


def test_what_a_client_may_not_ask_for() -> None:
    for fields in ({"tersely": {"preset": "off"}}, {"tersely": {"shadow": True}}, {"vllm_xargs": {"tersely": "off"}}):
        with pytest.raises(RequestError) as caught:
            under({"own_policies": False}, **fields)
        assert caught.value.status == 403 and caught.value.sent_code == "not_allowed"
    for field, path in (("max_tokens", CHAT), ("max_completion_tokens", CHAT), ("max_output_tokens", RESPONSES)):
        with pytest.raises(RequestError) as caught:
            under({"ceilings": {"max_tokens": 4999}}, path, **{field: 5000})
        assert caught.value.param == field
    lowered = under({"ceilings": {"effort": "low"}}, reasoning_effort="high")
    assert lowered.body["reasoning_effort"] == "low" and lowered.control.effort == "easy"


def test_defaults_and_shares_of_a_configuration() -> None:
    rules = {"defaults": {"max_tokens": 700, "thinking_tokens": 99, "policies": {"budget": {"slack": 5}}}}
    body = {"messages": BODY["messages"]}
    live = LiveConfig(Rules.model_validate(rules))
    assert translate(CHAT, body, live.rules("m"), "t").body["max_tokens"] == 700
    assert translate(RESPONSES, body, live.rules("m"), "t").body["max_output_tokens"] == 700
    assert under(rules).control.thinking_budget == 99 and under(rules).control.policies == {"budget": {"slack": 5}} | {}
    assert under(rules, reasoning_effort="high").control.thinking_budget is None
    assert under({"enabled": False}, tersely={"preset": "careful"}).control is None
    assert under({"control_share": 0.0}).control is None
    assert under({"control_share": 0.0}, tersely={"preset": "careful"}).control is not None
    capped = under({"control_share": 0.0, "ceilings": {"thinking_tokens": 77}}).control
    assert [policy.name for policy in capped.make_policies()] == ["budget"] and capped.thinking_budget == 77
    assert under({"shadow_share": 1.0}).control.shadow
    assert not under({"shadow_share": 1.0}, tersely={"shadow": False}).control.shadow
    assert not under({"shadow_share": 1.0}, seed=1).control.shadow
    assert not under({"shadow_share": 1.0}, thinking_token_budget=90).control.shadow
    assert under({}, seed=1, vllm_xargs={"tersely": '{"shadow": true}'}).control.shadow


CEILING = {"ceilings": {"thinking_tokens": 500}}
ITEMS = [{"type": "message", "role": "assistant", "status": "incomplete", "content": "<think>"}]


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        *(
            (CHAT, {name: wrong}, name)
            for name in HELD
            for wrong in (False, True, "true", [1])
            if wrong not in HELD[name]
        ),
        *((CHAT, {name: [1], "response_format": {"type": "json_object"}}, name) for name in _MASKS),
        (COMPLETIONS, {"use_beam_search": 1}, "use_beam_search"),
        (COMPLETIONS, {"prompt_embeds": "AAAA"}, "prompt_embeds"),
        (RESPONSES, {"input": ITEMS}, "input"),
    ],
    ids=str,
)
def test_what_would_take_a_request_out_of_control_is_refused(path: str, fields: dict[str, Any], param: str) -> None:
    """Under a ceiling, and where the request names a budget in tokens itself."""
    for rules, own in ((CEILING, {}), ({}, {"thinking_token_budget": 90})):
        with pytest.raises(RequestError) as caught:
            under(rules, path, **fields, **own)
        assert (caught.value.status, caught.value.param) == (400, param)
    assert under({}, path, **fields).body.keys() >= fields.keys()


def test_what_is_harmless_under_a_ceiling_is_passed_on() -> None:
    harmless = {name: accepted[0] for name, accepted in HELD.items() if accepted}
    masks = {"bad_words": ["</think>"], "allowed_token_ids": [1], "logit_bias": {"1": 5}, "stop_token_ids": [1]}
    fields = harmless | masks | {"chat_template": None}
    assert under(CEILING, **fields).body.items() >= fields.items()
    assert under(CEILING, tools=[{"type": "function"}], bad_words=[]).control.held


def test_only_the_fields_that_vllm_reads_limit_the_output() -> None:
    rules = {**CEILING, "ceilings": {"thinking_tokens": 500, "max_tokens": 900}}
    for path, name, other in (
        (CHAT, "max_tokens", "max_output_tokens"),
        (RESPONSES, "max_output_tokens", "max_tokens"),
    ):
        body = {"messages": BODY["messages"], other: 1}
        mapping = translate(path, body, LiveConfig(Rules.model_validate(rules)).rules("m"), "t")
        assert mapping.body[name] == 900 and mapping.control is not None
    for limit in ("5000", 5000.0, [1]):
        with pytest.raises(RequestError) as caught:
            under(rules, max_tokens=limit)
        assert caught.value.param == "max_tokens"
    assert under(rules, max_completion_tokens=1, max_tokens=900).control is None


@pytest.mark.parametrize(
    "fields",
    [{"reasoning_effort": "none"}, {"thinking_token_budget": 0}, {"chat_template_kwargs": {"enable_thinking": False}}],
    ids=str,
)
def test_no_effort_closes_what_the_template_opens(fields: dict[str, Any]) -> None:
    for rules in ({}, CEILING, {"defaults": {"preset": "off"}}):
        mapping = under(rules, **fields)
        assert (mapping.effort, mapping.tier, mapping.budget) == ("none", "none", 0)
        assert mapping.body["reasoning_effort"] == "none"
        assert mapping.control.make_budget("easy", 4096).thinking == 1
        assert [policy.name for policy in mapping.control.make_policies()] == ["budget"]


def test_an_effort_and_a_template_that_disagree_are_refused() -> None:
    with pytest.raises(RequestError) as caught:
        ask(CHAT, reasoning_effort="high", chat_template_kwargs={"enable_thinking": False})
    assert caught.value.param == "chat_template_kwargs.enable_thinking"


def test_tiers_and_budgets_of_replies_are_those_of_the_request() -> None:
    assert (ask(COMPLETIONS).tier, ask(COMPLETIONS).budget) == ("none", None)
    assert (ask(CHAT).tier, ask(CHAT).budget) == ("normal", 3840)
    assert ask(CHAT, thinking_token_budget=-1).budget == 3840
    assert ask(CHAT, max_tokens=None, thinking_token_budget=-1).budget is None
    assert ask(CHAT, thinking_token_budget=90).budget == 90
