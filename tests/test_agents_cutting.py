"""Text that is passed on while it comes, without markers and up to a stop string."""

from __future__ import annotations

import random

import pytest

from tersely.controller.agents.cutting import Held, Pieces, before_stop
from tersely.controller.markers import Markers
from tersely.controller.stream import Event

MARKERS = Markers("<think>", "</think>")


def pieces_of(text: str, seed: int) -> list[str]:
    rng = random.Random(seed)
    cuts = sorted(rng.choices(range(len(text) + 1), k=rng.randrange(8)))
    return [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]


@pytest.mark.parametrize("seed", range(20))
def test_however_text_comes_it_comes_to_the_same(seed: int):
    text = "  an answer  that \n ends STO or ST STOP and goes on "
    for ends, expected in ((("STOP", "goes"), "an answer  that \n ends STO or ST"), ((), text.strip())):
        held = Held(ends)
        out = [held.take(piece) for piece in pieces_of(text, seed)]
        assert "".join([*out, held.take("", last=True)]) == expected
        assert held.found == ("STOP" if ends else None)


def test_text_is_held_back_only_while_it_may_begin_an_end():
    held = Held(("STOP",))
    assert [held.take(text) for text in ("a", " S", "T", "U", "v ")] == ["a", "", "", " STU", "v"]


def test_what_follows_an_end_is_kept_apart():
    held = Held(("</think>",))
    assert held.take("so</thi") == "so" and held.take("nk>\n\nThe ") == "" and held.take("end") == ""
    assert held.rest == "\n\nThe end"


def test_before_stop():
    assert before_stop("1 is one", ["is"]) == ("1", True)
    assert before_stop("1 is one ", []) == ("1 is one ", False)


def told(pieces: Pieces, events: list[tuple[str, str]]) -> dict[str, str]:
    made = {"thinking": "", "answer": ""}
    for part, text in events:
        for to, more in pieces.take(Event(0, text, part)):
            made[to] += more
    for to, more in pieces.finish():
        made[to] += more
    return made


def test_markers_are_left_out():
    events = [("thinking", "I "), ("thinking", "add.\n</think>"), ("answer", "\n\n"), ("answer", "It is 3. ")]
    assert told(Pieces(MARKERS, "thinking", ()), events) == {"thinking": "I add.", "answer": "It is 3."}


def test_a_forced_close_may_hold_the_beginning_of_the_answer():
    events = [("thinking", "I add."), ("thinking", "\nEnough.\n</think>\n\nThe answer is"), ("answer", " 3.")]
    assert told(Pieces(MARKERS, "thinking", ()), events) == {
        "thinking": "I add.\nEnough.",
        "answer": "The answer is 3.",
    }


def test_an_opening_marker_is_waited_for():
    events = [("answer", "\n<th"), ("answer", "ink>"), ("thinking", "I add.</think>"), ("answer", "3")]
    assert told(Pieces(MARKERS, "before", ()), events) == {"thinking": "I add.", "answer": "3"}
    assert told(Pieces(MARKERS, "before", ()), [("answer", "<"), ("answer", "b> it")])["answer"] == "<b> it"
    assert told(Pieces(MARKERS, "before", ()), [("answer", "<")])["answer"] == "<"


def test_stops_are_looked_for_in_the_answer_alone():
    pieces = Pieces(MARKERS, "thinking", ("3",))
    assert told(pieces, [("thinking", "1 + 2 = 3</think>"), ("answer", "It is 3.")]) == {
        "thinking": "1 + 2 = 3",
        "answer": "It is",
    }
    assert pieces.stopped


def test_what_is_hidden_is_still_searched_for_stops():
    pieces = Pieces(MARKERS, "answer", ("END",), hide="<call>")
    assert told(pieces, [("answer", "So: <ca"), ("answer", "ll>{} END x")])["answer"] == "So:"
    assert pieces.stopped
