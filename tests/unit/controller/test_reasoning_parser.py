"""Splitting thinking from answer gives the same texts however the output arrives."""

from __future__ import annotations

import random

import pytest

from tersely.controller.text.markers import Markers
from tersely.controller.text.reasoning_parser import ReasoningParser, TextDelta, split_text, truncate_at_stop

MARKERS = Markers("<think>", "</think>")
THINKING, ANSWER = "One < two.\n\nSo </thin is no end.", "It is \\boxed{3}.\n\nDone <br>."
TEXTS = {
    "before": f"\n<think>\n{THINKING}\n</think>\n\n{ANSWER}\n",
    "thinking": f"\n{THINKING}\n\n</think>\n\n{ANSWER}",
    "answer": f"\n\n{ANSWER}\n\n",
}


def pieces(text: str, seed: int) -> list[str]:
    """A text in pieces of random length."""
    sizes, cut = random.Random(seed), list[str]()
    while text:
        size = sizes.randint(1, 7)
        cut.append(text[:size])
        text = text[size:]
    return cut


def feed(parser: ReasoningParser, text: str, seed: int) -> dict[str, str]:
    """The text of each channel, as emitted while a text arrives."""
    emitted = {"thinking": "", "answer": ""}
    for piece in pieces(text, seed):
        for delta in parser.feed(piece):
            assert delta.text
            emitted[delta.channel] += delta.text
    return emitted


@pytest.mark.parametrize("given_final", [True, False])
@pytest.mark.parametrize("state", TEXTS)
@pytest.mark.parametrize("stops", [(), ("Done",), (".\n\nD", "zzz"), ("<br>.", "\n\n"), ("It is",)])
@pytest.mark.parametrize("seed", range(5))
def test_deltas_add_up_to_the_channels(state: str, stops: tuple[str, ...], seed: int, given_final: bool) -> None:
    parser = ReasoningParser(MARKERS, state, stops)
    emitted = feed(parser, TEXTS[state], seed)
    thinking, answer = "" if state == "answer" else THINKING, truncate_at_stop(ANSWER, stops)[0]
    late = parser.finish(thinking, answer) if given_final else parser.finish()
    for delta in late:
        emitted[delta.channel] += delta.text
    assert emitted == {"thinking": thinking, "answer": answer} == {"thinking": parser.thinking, "answer": parser.answer}
    assert parser.stopped == bool(stops)
    assert sum(len(delta.text) for delta in late) <= 8


@pytest.mark.parametrize("state", TEXTS)
def test_a_whole_output_is_split_alike(state: str) -> None:
    assert split_text(TEXTS[state], MARKERS, state) == ("" if state == "answer" else THINKING, ANSWER)


@pytest.mark.parametrize(
    ("text", "state", "parts"),
    [
        ("no marker", "thinking", ("no marker", "")),
        ("half a </thi", "thinking", ("half a </thi", "")),
        ("<thi", "before", ("", "<thi")),
        (" \n", "before", ("", "")),
        ("a</think>b</think>c", "thinking", ("a", "b</think>c")),
        ("b</think>c", "before", ("", "b</think>c")),
        ("Sure.\n<think>a</think> b", "before", ("a", "Sure.\n\nb")),
        ("Wrap thoughts in <think> tags. 42.", "before", ("", "Wrap thoughts in <think> tags. 42.")),
    ],
)
@pytest.mark.parametrize("seed", range(3))
def test_unusual_outputs(text: str, state: str, parts: tuple[str, str], seed: int) -> None:
    assert split_text(text, MARKERS, state) == parts
    parser = ReasoningParser(MARKERS, state)
    feed(parser, text, seed)
    parser.finish()
    assert (parser.thinking, parser.answer) == parts


def test_an_output_that_does_not_open_its_thinking_is_an_answer() -> None:
    parser = ReasoningParser(MARKERS, "before")
    assert parser.feed("<thin") == []
    assert parser.feed("ner> walls") == [TextDelta("answer", "<thinner> walls")]


def test_text_before_a_late_opening_marker_is_streamed_as_answer() -> None:
    parser = ReasoningParser(MARKERS, "before")
    assert parser.feed("Sure.\n<thi") == [TextDelta("answer", "Sure.")]
    assert parser.feed("nk>So 7.</think>7") == [TextDelta("thinking", "So 7."), TextDelta("answer", "\n\n7")]
    assert parser.answer == "Sure.\n\n7"


def test_retracted_text_is_not_corrected() -> None:
    parser = ReasoningParser(MARKERS, "thinking")
    assert parser.feed("It is 5. ") == [TextDelta("thinking", "It is 5.")]
    assert parser.finish("It is 7.", "7") == [TextDelta("answer", "7")]


@pytest.mark.parametrize(
    ("stops", "kept"),
    [((), "a b c b"), (("",), "a b c b"), (("b",), "a"), (("c", "b c"), "a"), (("z",), "a b c b"), (("a",), "")],
)
def test_an_answer_is_cut_at_its_first_stop_string(stops: tuple[str, ...], kept: str) -> None:
    assert truncate_at_stop("a b c b", stops) == (kept, kept != "a b c b")


@pytest.mark.parametrize("seed", range(5))
def test_hidden_text_is_still_searched_for_stop_strings(seed: int) -> None:
    parser = ReasoningParser(MARKERS, "answer", ("END",), hide="<call>")
    assert feed(parser, "So: <ca of <call>{} END x", seed)["answer"] == "So: <ca of"
    assert parser.stopped
