"""Text parted while it is written reads as the whole does, however it comes in pieces."""

from __future__ import annotations

import random

import pytest

from tersely.controller.text.markers import Markers
from tersely.controller.text.reasoning_parser import StreamingReasoningParser, truncate_at_stop

MARKERS = Markers("<think>", "</think>")
THINKING, ANSWER = "One < two.\n\nSo </thin is no end.", "It is \\boxed{3}.\n\nDone <br>."


def parted(
    text: str, state: str, stops: tuple[str, ...], sizes: random.Random
) -> tuple[dict[str, str], StreamingReasoningParser, int]:
    """What was said of each part, and how much of that only in the end."""
    parting = StreamingReasoningParser(MARKERS, state, stops)
    said = {"thinking": "", "answer": ""}
    while text:
        size = sizes.randint(1, 7)
        piece, text = text[:size], text[size:]
        for part, new in parting.feed(piece):
            assert new
            said[part] += new
    before = sum(map(len, said.values()))
    for part, new in parting.finish(THINKING, truncate_at_stop(ANSWER, stops)[0]):
        said[part] += new
    return said, parting, sum(map(len, said.values())) - before


TEXTS = {
    "before": f"\n<think>\n{THINKING}\n</think>\n\n{ANSWER}\n",
    "thinking": f"\n{THINKING}\n\n</think>\n\n{ANSWER}",
    "answer": f"\n\n{ANSWER}\n\n",
}


@pytest.mark.parametrize("state", TEXTS)
@pytest.mark.parametrize("stops", [(), ("Done",), (".\n\nD", "zzz"), ("<br>.", "\n\n"), ("It is",)])
@pytest.mark.parametrize("seed", range(5))
def test_pieces_make_up_the_parts(state: str, stops: tuple[str, ...], seed: int) -> None:
    said, parting, late = parted(TEXTS[state], state, stops, random.Random(seed))
    assert said["answer"] == truncate_at_stop(ANSWER, stops)[0]
    assert parting.stopped == bool(stops)
    if state != "answer":
        assert said["thinking"] == THINKING
        assert late <= 8


def test_a_model_that_does_not_open_its_thinking_has_answered() -> None:
    parting = StreamingReasoningParser(MARKERS, "before")
    assert parting.feed("<thin") == []
    assert parting.feed("ner> walls") == [("answer", "<thinner> walls")]


def test_what_was_taken_back_is_not_unsaid() -> None:
    parting = StreamingReasoningParser(MARKERS, "thinking")
    assert parting.feed("It is 5. ") == [("thinking", "It is 5.")]
    assert parting.finish("It is 7.", "7") == [("answer", "7")]


@pytest.mark.parametrize(
    ("stops", "kept"),
    [((), "a b c b"), (("",), "a b c b"), (("b",), "a"), (("c", "b c"), "a"), (("z",), "a b c b"), (("a",), "")],
)
def test_an_answer_is_cut_at_the_first_of_its_stops(stops: tuple[str, ...], kept: str) -> None:
    assert truncate_at_stop("a b c b", stops) == (kept, kept != "a b c b")


@pytest.mark.parametrize("seed", range(5))
def test_what_is_hidden_is_still_searched_for_stops(seed: int) -> None:
    parting, sizes = StreamingReasoningParser(MARKERS, "answer", ("END",), hide="<call>"), random.Random(seed)
    text, said = "So: <ca of <call>{} END x", ""
    while text:
        size = sizes.randint(1, 5)
        said += "".join(new for _, new in parting.feed(text[:size]))
        text = text[size:]
    assert said == "So: <ca of"
    assert parting.stopped
