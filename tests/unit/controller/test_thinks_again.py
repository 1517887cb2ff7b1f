"""Models that think again in their answer: after a forced close, and in several blocks."""

from __future__ import annotations

from typing import Any

import pytest

from tersely.controller.budgets import Budget
from tersely.controller.controller import MAX_FORCED_CLOSES, Controller, ControllerState
from tersely.controller.policies.exits import BudgetForcing
from tersely.controller.text.markers import Markers
from tersely.controller.text.reasoning_parser import ReasoningParser, split_reasoning, split_text
from tersely.controller.text.tokenizer_adapter import TokenizerAdapter

from ...support.word_tokenizer import WordTokenizer

MARKERS = Markers("<think>", "</think>")
THINKING = "one two three. " * 20


class Output:
    """What stands after each token was shown to a controller."""

    def __init__(self, budget: int = 60, markers: Markers = MARKERS, **options: Any) -> None:
        self.codec = TokenizerAdapter(WordTokenizer())
        self.controller = Controller([BudgetForcing()], self.codec, markers, Budget("normal", budget), **options)
        self.ids: list[int] = []
        self.forced: list[bool] = []

    def feed(self, text: str, until_forced: bool = False) -> Output:
        for token in self.codec.encode(text):
            directive = self.controller.observe(token)
            self.ids += [token, *directive.force]
            self.forced += [False, *[True] * len(directive.force)]
            if until_forced and directive.force:
                break
        return self

    @property
    def actions(self) -> list[tuple[str, str]]:
        return [(decision.policy, decision.action) for decision in self.controller.decisions]

    def split(self):
        return split_reasoning(self.ids, self.codec, MARKERS, "thinking", any(self.forced))


@pytest.mark.parametrize(
    "again",
    [
        "Wait, that is wrong",
        "Hmm, is it",
        "Let me recheck this",
        "Okay, so we had",
        "等等，这不对",
        "But wait, there is",
    ],
)
def test_deliberation_after_a_forced_close_is_closed_once_more_and_counts_as_thinking(again: str) -> None:
    output = Output().feed(THINKING, until_forced=True).feed(again, until_forced=True).feed("It is 5.")
    assert output.actions == [("budget", "close"), ("controller", "close")]
    parts = output.split()
    assert parts.answer == "**Final answer**\n\nIt is 5."
    assert again[:2] in parts.thinking
    assert parts.answer_tokens == len(output.codec.encode("\n\n**Final answer**\n\nIt is 5."))


@pytest.mark.parametrize(
    "answer",
    [
        "The answer is 5.",
        "Waiting is not an option.",
        "Alternatively named, the set is open.",
        "Actually existing socialism.",
        "He said: okay.",
        "Let me explain: 2 + 3 = 5.",
        "The wait is over. Hold the line.",
    ],
)
def test_an_answer_is_left_alone_after_a_forced_close(answer: str) -> None:
    output = Output().feed(THINKING, until_forced=True).feed(answer)
    assert output.actions == [("budget", "close")]
    assert output.split().answer == answer


def test_nothing_is_looked_for_late_in_an_answer_or_after_a_natural_close() -> None:
    late = "word " * 130 + ". Wait, one more thing."
    assert Output().feed(THINKING, until_forced=True).feed(late).actions == [("budget", "close")]
    assert Output(500).feed("So 5.\n\n</think>\n\nWait, it is 5.\n\n</think>\n\nNo.").actions == []


def test_what_comes_before_a_second_close_is_thinking() -> None:
    output = Output().feed(THINKING, until_forced=True).feed("So 2 and 3 is 5.\n</think>\n\nIt is 5.")
    assert output.actions == [("budget", "close"), ("controller", "note")]
    assert output.split().answer == "It is 5."
    assert output.split().thinking.endswith("So 2 and 3 is 5.")


def test_the_first_close_counts_where_it_was_not_forced() -> None:
    text = "So 5.\n\n</think>\n\nThe tag is\n</think>\nand it is 5."
    assert Output(500).feed(text).split().answer == "The tag is\n</think>\nand it is 5."


def test_a_model_that_thinks_on_for_ever_is_left_alone_at_last() -> None:
    output = Output().feed(THINKING, until_forced=True)
    for _ in range(6):
        output.feed("Wait, no", until_forced=True)
    assert output.actions.count(("controller", "close")) == MAX_FORCED_CLOSES - 1
    assert output.actions[-1] == ("controller", "note")


def test_a_model_that_opens_its_thinking_for_ever_is_closed_each_time() -> None:
    output = Output().feed(THINKING, until_forced=True)
    for _ in range(6):
        output.feed("<think>", until_forced=True)
    assert output.actions.count(("controller", "close")) == 6


@pytest.mark.parametrize("answer", ["The tag is <think>", "```\nThe tag is\n<think>"])
def test_an_answer_quotes_markers_unless_the_budget_is_a_ceiling(answer: str) -> None:
    for held, closes in ((False, []), (True, [("controller", "note"), ("budget", "close")])):
        closed = Output(held=held).feed(f"So 5.\n\n</think>\n\n{answer}").feed(THINKING, until_forced=True)
        begun = Output(opened=False, held=held).feed(answer).feed(THINKING, until_forced=True)
        assert closed.actions == closes and begun.actions == closes[1:]


def test_the_budget_holds_over_several_blocks_of_thinking() -> None:
    output = Output(60).feed("one two three. </think>\n\nA first part.\n\n<think>\n")
    assert output.controller.state is ControllerState.THINKING
    output.feed(THINKING, until_forced=True).feed("It is 5.")
    parts = output.split()
    assert parts.answer == "A first part.\n\nIt is 5."
    assert parts.thinking_tokens <= 60
    assert output.actions == [("controller", "note"), ("budget", "close")]


def test_thinking_that_is_opened_again_after_a_forced_close_is_closed_at_once() -> None:
    output = Output().feed(THINKING, until_forced=True).feed("<think>", until_forced=True).feed("It is 5.")
    assert output.actions == [("budget", "close"), ("controller", "close")]
    assert output.split().answer == "**Final answer**\n\nIt is 5."


@pytest.mark.parametrize("quoted", ["The tag `<think>` opens it.", "```\n<think>\n```\nopens it.", "a <think> b"])
def test_a_quoted_marker_opens_nothing(quoted: str) -> None:
    output = Output(500).feed(f"So.</think>\n\n{quoted}")
    assert output.controller.state is ControllerState.ANSWER
    assert output.split().answer == quoted


@pytest.mark.parametrize("size", [1, 3, 7, 1000])
def test_blocks_are_split_alike_whole_and_in_pieces(size: int) -> None:
    text = "a\n</think>\n\nfirst `<think>` part\n\n<think>\nb\n</think>\n\nsecond\n<think>c</think>third"
    parser = ReasoningParser(MARKERS, "thinking")
    deltas = [d for at in range(0, len(text), size) for d in parser.feed(text[at : at + size])] + parser.finish()
    for channel, expected in (("thinking", "a\n\nb\n\nc"), ("answer", "first `<think>` part\n\nsecond\n\nthird")):
        assert "".join(d.text for d in deltas if d.channel == channel) == expected
    assert split_text(text, MARKERS, "thinking") == (parser.thinking, parser.answer)


def test_a_stream_holds_back_what_may_be_deliberation() -> None:
    parser = ReasoningParser(MARKERS, "thinking")
    parser.forced = True
    assert [d.channel for d in parser.feed("a\n</think>\n\nWait, so")] == ["thinking"]
    parser.feed("\n\n</think>\n\n**Final answer**\n\nIt is 5, I am quite sure.")
    parser.finish()
    assert parser.answer == "**Final answer**\n\nIt is 5, I am quite sure."
    assert parser.thinking == "a\n\nWait, so"


def test_a_cut_says_the_best_answer_so_far_where_it_fits() -> None:
    stated = Output(120).feed("So the answer is 42. " + THINKING, until_forced=True)
    assert stated.codec.decode(stated.ids).endswith("So far the answer is 42.\n</think>\n\n")
    assert stated.split().thinking_tokens <= 120
    tight = Output(40).feed("So the answer is 42 " + "and so on " * 20, until_forced=True)
    assert tight.codec.decode(tight.ids).endswith("so I answer now.\n</think>\n\n")
    assert tight.split().thinking_tokens <= 40
    for size in (5, 8, 14, 20):  # no sentence fits, and nearly all of the budget is used
        tiny = Output(size).feed("So the answer is 42 " + "and so on " * 20, until_forced=True)
        assert "Time is short" not in tiny.codec.decode(tiny.ids)
        assert 0.7 * size <= tiny.split().thinking_tokens <= size


@pytest.mark.parametrize(
    ("start", "held"), [("The", False), ("5", False), ("Wa", True), ("Wait, I", True), ("Nobody", True), ("等等", True)]
)
def test_only_what_may_be_deliberation_is_held_back(start: str, held: bool) -> None:
    parser = ReasoningParser(MARKERS, "answer")
    parser.forced = True
    assert (parser.feed(start) == []) == held
    parser.feed(" and so on, until it is clear what the answer is.")
    assert parser.answer.startswith(start)


def test_an_unknown_opening_marker_opens_nothing() -> None:
    assert split_text("Two.</think>\n\nIt is 4.", Markers("", "</think>"), "thinking") == ("Two.", "It is 4.")
