"""Text for a reader while it is made: markers and surrounding white space taken off, cut before a stop string."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..markers import Markers
from ..stream import Event


class Held:
    """Passes text on up to the first of `ends`; what may turn out to be the beginning of one waits.

    trim: white space around the whole is left out. rest: what came after the end that was found.
    """

    def __init__(self, ends: Sequence[str] = (), trim: bool = True) -> None:
        self.ends, self.trim = tuple(filter(None, ends)), trim
        self.found: str | None = None
        self.rest = ""
        self._waiting = ""
        self._begun = not trim

    def take(self, text: str, last: bool = False) -> str:
        """What of the text so far can be passed on now; last: no more will come."""
        if self.found is not None:
            self.rest += text
            return ""
        self._waiting += text
        places = [(place, end) for end in self.ends if (place := self._waiting.find(end)) >= 0]
        if places:
            place, self.found = min(places)
            self.rest = self._waiting[place + len(self.found) :]
        else:
            place = len(self._waiting) - (0 if last else self._beginning())
        ready, self._waiting = self._waiting[:place], self._waiting[place:]
        if self.trim:
            bare = ready.rstrip()
            self._waiting = ready[len(bare) :] + self._waiting
            ready = bare if self._begun else bare.lstrip()
            self._begun = self._begun or bool(ready)
        return ready

    def _beginning(self) -> int:
        """How many characters at the end of what waits may begin one of the ends."""
        longest = max(map(len, self.ends), default=1) - 1
        for size in range(min(longest, len(self._waiting)), 0, -1):
            if any(end.startswith(self._waiting[-size:]) for end in self.ends):
                return size
        return 0


class Pieces:
    """The events of one row as (part, text); `stopped` once a stop string has ended the answer.

    state: where the prompt left the model. hide: from this text on the answer is not for reading as it comes.
    """

    def __init__(self, markers: Markers, state: str, stops: Sequence[str], hide: str = "") -> None:
        self.markers = markers
        self._unsure: str | None = "" if state == "before" else None
        self._thinking = Held((markers.close,))
        self._stops, self._answer = Held(stops, trim=False), Held((hide,))

    @property
    def stopped(self) -> bool:
        """Whether a stop string was found in the answer."""
        return self._stops.found is not None

    def take(self, event: Event) -> Iterator[tuple[str, str]]:
        """What the event adds for a reader."""
        if event.part == "thinking":
            self._unsure = None
            yield from self._part("thinking", self._thinking.take(event.text))
            rest, self._thinking.rest = self._thinking.rest, ""
            yield from self._answered(rest)
            return
        text = event.text
        if self._unsure is not None:
            self._unsure += text
            if self.markers.open in self._unsure:
                self._unsure = None
                return
            if self.markers.open.startswith(self._unsure.strip()):
                return
            text, self._unsure = self._unsure, None
        yield from self._answered(text)

    def finish(self) -> Iterator[tuple[str, str]]:
        """What still waited."""
        if self._thinking.found is None:
            yield from self._part("thinking", self._thinking.take("", last=True))
        yield from self._answered(self._unsure or "", last=True)

    def _answered(self, text: str, last: bool = False) -> Iterator[tuple[str, str]]:
        yield from self._part("answer", self._answer.take(self._stops.take(text, last), last))

    def _part(self, part: str, text: str) -> Iterator[tuple[str, str]]:
        if text:
            yield part, text


def before_stop(text: str, stops: Sequence[str]) -> tuple[str, bool]:
    """The text up to its first stop string, and whether there was one."""
    held = Held(stops, trim=False)
    head = held.take(text, last=True)
    return head.rstrip() if held.found else head, held.found is not None
