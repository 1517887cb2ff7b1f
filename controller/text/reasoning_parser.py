"""Parting the text of a row into thinking and answer while it is written, so that it ends as the whole would read.

What may yet turn out to be part of a marker, of a stop string or of white space at an end is held back. Knows no
tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from .markers import Markers

Part = Literal["thinking", "answer"]


def truncate_at_stop(answer: str, stops: Sequence[str]) -> tuple[str, bool]:
    """An answer up to the first stop string in it, and whether there was one."""
    places = [place for stop in stops if stop and (place := answer.find(stop)) >= 0]
    return (answer[: min(places)].rstrip(), True) if places else (answer, False)


class StreamingReasoningParser:
    """Follows one row; state: where its prompt left the model, see `prompts.RenderedPrompt`.

    hide: from this text on, the answer is not said as it comes. stopped: a stop string stands in the answer; what comes
    after it is dropped.
    """

    def __init__(self, markers: Markers, state: str, stops: Sequence[str] = (), hide: str = "") -> None:
        self.markers, self.stops, self.hide = markers, tuple(filter(None, stops)), hide
        self.stopped = self._hidden = False
        self._state = state
        self._held = ""
        self._said: dict[Part, str] = {"thinking": "", "answer": ""}

    def feed(self, text: str) -> list[tuple[Part, str]]:
        """Take in text; what can be said now."""
        self._held += text
        said: list[tuple[Part, str]] = []
        if self._state == "before":
            self._open()
        if self._state == "thinking":
            self._think(said)
        if self._state == "answer":
            self._answer(said)
        return said

    def finish(self, thinking: str, answer: str) -> list[tuple[Part, str]]:
        """What is still to be said, now that the parts are known.

        Nothing of a part that turned out otherwise: what is taken back later is not un-said.
        """
        said: list[tuple[Part, str]] = []
        for part, whole in (("thinking", thinking), ("answer", answer)):
            spoken = self._said[part]  # type: ignore[index]  # mypy takes the loop's names for any text
            if whole.startswith(spoken) and len(whole) > len(spoken):
                said.append((part, whole[len(spoken) :]))  # type: ignore[arg-type]
        return said

    def _open(self) -> None:
        """Go past the marker that opens the thinking, or notice that there is none."""
        text, marker = self._held.lstrip(), self.markers.open
        if text.startswith(marker):
            self._state, self._held = "thinking", text[len(marker) :]
        elif not marker.startswith(text):
            self._state = "answer"

    def _think(self, said: list[tuple[Part, str]]) -> None:
        text, found, rest = self._held.partition(self.markers.close)
        if found:
            self._say("thinking", text.rstrip(), said)
            self._state, self._held = "answer", rest
        else:
            self._held = self._say_safe("thinking", text, (self.markers.close,), said)

    def _answer(self, said: list[tuple[Part, str]]) -> None:
        if self.stopped:
            self._held = ""
            return
        if self._hidden:
            self.stopped = truncate_at_stop(self._held, self.stops)[1]
            return
        text = self._held if self._said["answer"] else self._held.lstrip()
        text, self.stopped = truncate_at_stop(text, self.stops)
        shown, found, rest = text.partition(self.hide) if self.hide else (text, "", "")
        if self.stopped or found:
            self._say("answer", shown.rstrip() if found else shown, said)
            self._held, self._hidden = rest, bool(found)
        else:
            self._held = self._say_safe("answer", text, (*self.stops, self.hide) if self.hide else self.stops, said)

    def _say_safe(self, part: Part, text: str, ends: Sequence[str], said: list[tuple[Part, str]]) -> str:
        """Say what is certain of a text, and return the rest."""
        safe = len(text)
        for end in ends:
            size = next((n for n in range(min(len(end) - 1, len(text)), 0, -1) if text.endswith(end[:n])), 0)
            safe = min(safe, len(text) - size)
        safe = len(text[:safe].rstrip())
        self._say(part, text[:safe], said)
        return text[safe:]

    def _say(self, part: Part, text: str, said: list[tuple[Part, str]]) -> None:
        if not self._said[part]:
            text = text.lstrip()
        if text:
            self._said[part] += text
            said.append((part, text))
