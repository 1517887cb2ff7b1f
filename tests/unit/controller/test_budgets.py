"""Budgets: guards that grow with the output, and requested ones that are kept to the token on every surface."""

from __future__ import annotations

import pytest

from tersely.controller.budgets import UNLIMITED, Budget, fit_budget
from tersely.controller.controller import Controller, ControllerState
from tersely.controller.options import check_budget, make_options
from tersely.controller.policies.exits import BudgetForcing
from tersely.controller.serving.completion_service import resolve_request
from tersely.controller.serving.rules import RequestRules
from tersely.controller.serving.schemas import ChatRequest
from tersely.controller.serving.settings import EFFORT_CAPS, ModelInfo, ServerLimits, effort_caps
from tersely.controller.serving.vllm_translation import CHAT, translate
from tersely.controller.text.markers import Markers
from tersely.controller.text.tokenizer_adapter import TokenizerAdapter
from tersely.controller.vllm.request_control import make_control
from tersely.errors import OptionError

from ...support.word_tokenizer import WordTokenizer

LIMIT = 32768


@pytest.mark.parametrize(
    ("tier", "limit", "thinking", "reserve"),
    [
        ("normal", 1024, 960, 64),
        ("normal", 32768, 31744, 1024),
        ("hard", 8192, 7680, 512),
        ("easy", 2048, 1024, 128),
        ("easy", 32768, 7936, 1024),
        ("easy", 200, 136, 64),
        ("none", 2048, 0, 128),
    ],
)
def test_guards_and_the_reserve_grow_with_the_output(tier: str, limit: int, thinking: int, reserve: int) -> None:
    budget = fit_budget(tier, limit)
    assert (budget.thinking, budget.reserve) == (thinking, reserve)


@pytest.mark.parametrize("asked", [64, 8000, 30000])
@pytest.mark.parametrize("tier", ["easy", "normal", "hard"])
def test_a_requested_budget_takes_the_place_of_the_guard_on_every_surface(tier: str, asked: int) -> None:
    assert fit_budget(tier, LIMIT, thinking=asked).thinking == asked
    assert make_control(effort=tier, thinking_budget=asked).make_budget(tier, LIMIT).thinking == asked
    body = {"model": "m", "messages": [{"role": "user", "content": "2 + 2?"}], "thinking_token_budget": asked}
    options = resolve_request(
        ChatRequest.model_validate({**body, "tersely": {"effort": tier}}), RequestRules(), ServerLimits(), ModelInfo()
    ).options
    assert options.thinking_budget == asked
    mapping = translate(CHAT, {**body, "tersely": {"effort": tier}}, RequestRules(), "t")
    assert mapping.control is not None and mapping.control.make_budget(tier, LIMIT).thinking == asked


@pytest.mark.parametrize("asked", [20, 64, 500, 8000, 30000])
def test_a_requested_budget_is_kept_to_the_token(asked: int) -> None:
    codec, markers = TokenizerAdapter(WordTokenizer()), Markers("<think>", "</think>")
    controller = Controller([BudgetForcing()], codec, markers, fit_budget("normal", LIMIT, thinking=asked))
    sentence, used = codec.encode("word and word and so on, "), 0
    while controller.state is ControllerState.THINKING:
        used += 1 + len(controller.observe(sentence[used % len(sentence)]).force)
    assert asked - 24 <= used <= asked + 1  # the line break after the closing marker is the answer's


def test_the_efforts_of_a_server_grow_unless_it_caps_them() -> None:
    caps = effort_caps({**EFFORT_CAPS, "high": 16384}, LIMIT)
    assert caps == {
        "none": 0,
        "minimal": 128,
        "low": 7936,
        "medium": 31744,
        "high": 16384,
        "xhigh": 31744,
        "max": 31744,
    }


def test_what_contradicts_is_refused() -> None:
    with pytest.raises(OptionError) as caught:
        check_budget(make_options(effort="none", thinking_budget=5))
    assert caught.value.code == "contradicting_options"
    with pytest.raises(OptionError):
        check_budget(make_options(max_new_tokens=64))


def test_a_strategy_may_cap_a_tier_in_tokens() -> None:
    strategy = {"normal": Budget("normal", 100)}
    assert fit_budget("normal", 2048, strategy=strategy).thinking == 100
    assert fit_budget("normal", 2048, strategy=strategy, thinking=UNLIMITED).thinking == 1920
