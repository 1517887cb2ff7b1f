"""How `tersely run` shows a generation: thinking and answer, forced text, the comparison."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from tersely.cli.run import TerminalRenderer, comparison, format_outcome
from tersely.controller.streaming import TextDeltaEvent
from tersely.controller.trace import Decision, GenerationResult, Usage


def shown(events: Sequence[TextDeltaEvent], styled: bool = True) -> list[tuple[str, str]]:
    """What is written per style, neighbours of one style joined."""
    written: list[tuple[str, str]] = []

    def write(text: str, style: str) -> None:
        if written and written[-1][1] == style:
            text = written.pop()[0] + text
        written.append((text, style))

    show = TerminalRenderer(write, styled)
    for event in events:
        show(event)
    show.finish()
    return written


def thinking(*texts: str) -> list[TextDeltaEvent]:
    return [TextDeltaEvent(0, text, "thinking") for text in texts]


def test_thinking_and_answer_have_their_own_styles() -> None:
    events = [*thinking("So", " 7."), TextDeltaEvent(0, "It is", "answer"), TextDeltaEvent(0, " 7.", "answer")]
    assert shown(events) == [("So 7.", "dim"), ("\n\n", ""), ("It is 7.", "bold"), ("\n", "")]
    plain = "".join(text for text, _ in shown(events, styled=False))
    assert plain == "[thinking]\nSo 7.\n\n[answer]\nIt is 7.\n"


def test_forced_text_stands_out_with_its_reason() -> None:
    hint = Decision("hint", "inject", "hint 1", 4, "Be brief.")
    events = [*thinking("So"), TextDeltaEvent(0, "\n\nBe brief.", "thinking", hint), *thinking("\n\n7.")]
    assert shown(events) == [
        ("So", "dim"),
        ("\n", ""),
        ("◆ hint: hint 1", "bold yellow"),
        (" → Be brief.", "yellow"),
        ("\n", ""),
        ("7.", "dim"),
        ("\n", ""),
    ]


def test_an_encoding_without_the_sign_gets_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    assert TerminalRenderer(lambda text, style: None, False).sign == "*"


def generation(answer: str, total: int, finish: str = "stop") -> GenerationResult:
    return GenerationResult(answer, "", answer, finish, "normal", Usage(thinking=total))


@pytest.mark.parametrize(
    ("ours", "theirs", "line"),
    [
        (("It is 61.", 50), ("\\boxed{61.0}", 200), "same answer (61.0), 50 tokens instead of 200, 75% saved"),
        (("61", 50), ("59", 40), "other answer (59), 50 tokens instead of 40, 25% more"),
        (("61", 50), ("", 100, "length"), "no answer within the limit, 50 tokens instead of 100, 50% saved"),
        (("", 50), ("59", 50), "an answer (59) where this run has none, 50 tokens instead of 50, 0% saved"),
    ],
)
def test_the_comparison_says_answer_tokens_and_saving(
    ours: tuple[Any, ...], theirs: tuple[Any, ...], line: str
) -> None:
    assert comparison(generation(*ours), generation(*theirs)) == f"uncontrolled: {line}"


def test_a_cut_off_answer_is_said() -> None:
    assert format_outcome(generation("It is", 9, "length")) is not None
    assert format_outcome(generation("It is 7.", 9)) is None
    assert format_outcome(replace(generation("", 9), finish_reason="interrupted")) is None
