"""Small facts on text: stated answers, markers, efforts, budgets, policies by name, splitting."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from tersely.controller.budgets import canonical_effort, fit_budget
from tersely.controller.policies import get_presets, make_policies, make_policy
from tersely.controller.session import build_spans
from tersely.controller.text.answers import extract_answer, extract_boxed, extract_stated_answer, normalize_answer
from tersely.controller.text.markers import PROMPTED, Markers, choose_markers, find_markers, parse_markers
from tersely.controller.text.reasoning_parser import split_reasoning
from tersely.controller.text.tokenizer_adapter import TokenizerAdapter
from tersely.errors import MarkerError, OptionError

from ...support.refusals import refused
from ...support.word_tokenizer import WordTokenizer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("So the answer is 61.", "61"),
        ("Now 55, before 51: different. That makes 55.", "55"),
        ("Therefore, we get $1,200.50", "1200.5"),
        ("The total is **42**.", "42"),
        ("we write \\boxed{\\frac{1}{2}} here", "1/2"),
        ("2+3=5.", None),
        ("I will answer soon. This is yesterday's 5.", None),
        ("The answer is -7, not 7.", "-7"),
    ],
)
def test_stated(text, answer):
    assert extract_stated_answer(text) == answer


def test_boxed_takes_the_last_closed_one():
    assert extract_boxed("\\boxed{1} then \\boxed{{2}}") == "{2}"
    assert extract_boxed("\\boxed{1") is None
    assert extract_answer("it is 12 or 13") == "13"
    assert extract_answer("blue") == "blue"


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("007", "7"),
        ("1,000.0", "1000"),
        ("-0.50", "-0.5"),
        ("x = 1", "1"),
        ("$1,234,567.50", "1234567.5"),
        ("-2,1", "-2, 1"),
        ("3,5,7", "3, 5, 7"),
    ],
)
def test_normalise(raw, clean):
    assert normalize_answer(raw) == clean


def test_markers_come_from_the_tokenizer_then_the_template_and_are_never_guessed():
    def make(added, template):
        return SimpleNamespace(get_added_vocab=lambda: dict.fromkeys(added, 1), chat_template=template)

    assert find_markers(make(["<think>", "</think>"], None)).source == "tokenizer"
    assert find_markers(make([], "{{ '<think>' }} x </think>")) == Markers("<think>", "</think>", "chat template")
    with refused(MarkerError):
        find_markers(make(["<|im_end|>"], "plain"))
    assert find_markers(make(["<|channel>", "<channel|>"], None)).open == "<|channel>thought"
    assert find_markers(make(["<|channel|>", "<|message|>", "<|end|>"], None)).close == "<|end|>"
    assert find_markers(make(["<|START_THINKING|>", "<|END_THINKING|>"], None)).close == "<|END_THINKING|>"
    assert parse_markers("[a], [b]") == Markers("[a]", "[b]")
    with refused(OptionError):
        parse_markers("[a]")


def test_a_model_that_never_opens_its_markers_can_be_asked_to_think():
    def make(template):
        added = {"<think>": 1, "</think>": 2}
        return SimpleNamespace(get_added_vocab=lambda: added, chat_template=template)

    assert choose_markers(make("{{ messages }}"), None, think_prompt=True) == PROMPTED
    assert choose_markers(make(None), None, think_prompt=True) == PROMPTED
    with refused(OptionError):
        choose_markers(make("{{ '<think>' }}"), None, think_prompt=True)


def test_efforts_and_budgets():
    assert canonical_effort("high") == "hard"
    with refused(OptionError, "unknown_name"):
        canonical_effort("norml")
    assert fit_budget("normal", 200).thinking == 136
    with refused(OptionError):
        fit_budget("normal", 64)


def test_policies_by_name():
    for preset, policies in get_presets().items():
        assert [policy.name for policy in make_policies(preset)] == list(policies)
    with refused(OptionError, "unknown_name"):
        make_policy("convergance")
    with refused(OptionError, "unknown_name"):
        make_policy("convergence", {"agre": 2})
    with refused(OptionError, "unknown_name"):
        make_policies("balance")
    with refused(OptionError):
        make_policies(policies=["hint", "hint"])


def test_output_is_split_at_the_marker():
    codec = TokenizerAdapter(WordTokenizer())
    markers = Markers("<think>", "</think>")
    ids = codec.encode("a b</think>\n\nthe answer")
    parts = split_reasoning(ids, codec, markers, "thinking")
    assert (parts.thinking, parts.answer, parts.thinking_tokens) == ("a b", "the answer", 4)
    assert parts.thinking_tokens + parts.answer_tokens == len(ids)
    assert split_reasoning(codec.encode("no marker"), codec, markers, "thinking").answer == ""
    assert split_reasoning(codec.encode("plain answer"), codec, markers, "before").thinking == ""
    runs = build_spans(ids, [False] * 3 + [True] * (len(ids) - 3), codec)
    assert [(s.kind, s.text) for s in runs] == [("sampled", "a b"), ("forced", "</think>\n\nthe answer")]
