"""What arrives of a chat completion: thinking, answer, tool calls and usage, each as the server wrote it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from .engines.openai import StreamError
from .policies.exits import Repetition
from .text.loops import LoopDetector
from .text.markers import Markers
from .text.reasoning_parser import Channel, TextDelta
from .trace import Decision

_MOST_SPACE = 256  # characters before an opening marker
_WORD = re.compile(r"\d|[\u3040-\u9fff]|[^\W\d\u3040-\u9fff]+|[^\w\s]|\n")
_LONGEST_WORD = 64  # characters of a word that may not be complete


def read_count(usage: Any, *path: str) -> int | None:
    """A number of tokens in what a server says of its usage; None where that is not a count."""
    for name in path:
        usage = usage.get(name) if isinstance(usage, dict) else None
    return usage if type(usage) is int and usage >= 0 else None


class _Words:
    """The tokens of a text whose tokenizer is unknown: words, digits and marks."""

    def __init__(self) -> None:
        self.kinds: list[str] = []
        self._ids: dict[str, int] = {}
        self._held = ""

    def read(self, piece: str) -> list[int]:
        """The ids of all words that are complete."""
        text = self._held + piece
        end = len(text)
        while end and text[end - 1].isalpha() and text[end - 1] < "\u3040" and len(text) - end < _LONGEST_WORD:
            end -= 1
        self._held = text[end:]
        return [self._id(word) for word in _WORD.findall(text[:end])]

    def _id(self, word: str) -> int:
        if word not in self._ids:
            self._ids[word] = len(self.kinds)
            self.kinds.append(word if word.isdigit() else "." if word in ".!?\n" else "")
        return self._ids[word]


class ThinkingWatch:
    """Follows thinking as text; `looping` once it goes round in circles."""

    def __init__(self) -> None:
        self.pieces = 0  # mostly one a token
        self._words = _Words()
        self._detector = LoopDetector(self._words.kinds)
        self._limit = LoopDetector.score_after(Repetition().tokens)

    def looping(self, piece: str) -> bool:
        """Whether the thinking has come to be a loop with this piece."""
        self.pieces += 1
        return self._detector.read(self._words.read(piece)) >= self._limit and not self._detector.counts


class _Buffer:
    """Text that is handed out once it is certain: no beginning of an end, and no half of a character."""

    def __init__(self) -> None:
        self.text = ""

    def take(self, ends: Sequence[str], last: bool) -> tuple[str, bool]:
        """The text up to the first of the ends, and whether there is one; all of it if it is the last."""
        found = [(at, len(end)) for end in ends if (at := self.text.find(end)) >= 0]
        at, size = min(found, default=(len(self.text) if last else self._certain(ends), 0))
        taken, self.text = self.text[:at], self.text[at + size :]
        return _join_surrogates(taken), bool(found)

    def _certain(self, ends: Sequence[str]) -> int:
        held = int("\ud800" <= self.text[-1:] <= "\udbff")
        for end in ends:
            sizes = range(min(len(end) - 1, len(self.text)), held, -1)
            held = next((size for size in sizes if self.text.endswith(end[:size])), held)
        return len(self.text) - held


class ChatRow:
    """What has arrived of one reply.

    Content is the answer, unless it begins with thinking between two markers: then these are left out, with the line
    ends next to them, and nothing else. Stop strings end the answer; `stopped` is True once one was found.
    """

    def __init__(self, markers: Markers, stops: Sequence[str] = ()) -> None:
        self.markers, self.stops = markers, tuple(filter(None, stops))
        self.state = "before"  # the thinking, or "thinking" or "answer"
        self.stopped = self._fresh = False
        self.id = self.finish = ""
        self.usage: Any = None
        self.pieces = 0
        self.deltas: list[TextDelta] = []
        self.watch, self.decisions = ThinkingWatch(), list[Decision]()
        self._calls: dict[int, dict[str, Any]] = {}
        self._logprobs: list[Any] = []  # of tokens
        self._reasoning, self._content = _Buffer(), _Buffer()

    def text(self, channel: Channel) -> str:
        """The text of a channel so far."""
        return "".join(delta.text for delta in self.deltas if delta.channel == channel)

    def tool_calls(self) -> list[dict[str, Any]]:
        """The calls in order."""
        return [_whole(self._calls[index]) for index in sorted(self._calls)]

    def logprobs(self) -> dict[str, Any] | None:
        """The log-probabilities of the tokens, if the server sent any."""
        return {"content": _whole(self._logprobs)} if self._logprobs else None

    def read(self, choice: Mapping[str, Any]) -> list[TextDelta]:
        """Read a choice of an event; returns what is new of the texts. Raises StreamError for a malformed one."""
        delta = choice.get("delta") or choice.get("message") or {}
        try:
            thinking, content = _read_content(delta.get("content") or "")
            content += delta.get("refusal") or ""
            thinking = delta.get("reasoning_content") or delta.get("reasoning") or thinking
            self.finish = str(choice.get("finish_reason") or self.finish)
            for call in delta.get("tool_calls") or ():
                _add_call(self._calls, call)
            self._logprobs += (choice.get("logprobs") or {}).get("content") or ()
            self.pieces += bool(thinking or content)
            return self._add(thinking, content)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise StreamError(f"an event is malformed: {type(error).__name__}") from error

    def end(self) -> list[TextDelta]:
        """Return what was held back."""
        return self._add("", "", last=True)

    def _add(self, thinking: str, content: str, last: bool = False) -> list[TextDelta]:
        self._reasoning.text += thinking
        self._content.text += content
        if thinking and self.state == "before":
            self.state = "answer"  # a server that separates them leaves no markers
        new = [TextDelta("thinking", self._reasoning.take((), last)[0])]
        self._find_thinking(last)
        if self.state == "thinking":
            closing = self.markers.close + self.markers.answer_header
            thought, closed = self._take((f"\n{closing}", closing), last)
            new.append(TextDelta("thinking", thought))
            self.state, self._fresh = ("answer", True) if closed else (self.state, self._fresh)
        if self.state == "answer" and not self.stopped:
            answer, self.stopped = self._take(self.stops, last)
            new.append(TextDelta("answer", answer))
        new = [delta for delta in new if delta.text]
        self.deltas += new
        return new

    def _find_thinking(self, last: bool) -> None:
        """See whether the content begins with an opening marker."""
        text, opening = self._content.text.lstrip(), self.markers.open
        if self.state == "before" and text.startswith(opening):
            self.state, self._fresh, self._content.text = "thinking", True, text[len(opening) :]
        elif self.state == "before":
            undecided = opening.startswith(text) and len(self._content.text) < _MOST_SPACE and not last
            self.state = "before" if undecided else "answer"

    def _take(self, ends: Sequence[str], last: bool) -> tuple[str, bool]:
        if self._fresh:  # behind a marker
            self._content.text = self._content.text.lstrip("\n")
            self._fresh = not self._content.text
        return self._content.take(ends, last)


def _join_surrogates(text: str) -> str:
    """A text whose halves of characters are joined; one that has no other half becomes U+FFFD."""
    return text if text.isascii() else text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _whole(value: Any) -> Any:
    """A JSON value with whole characters, and null for what is not a number."""
    return json.loads(_join_surrogates(json.dumps(value, ensure_ascii=False)), parse_constant=lambda name: None)


def _read_content(content: Any) -> tuple[str, str]:
    """The thinking and the text of content, which is a text or a list of parts, as Mistral's servers send them."""
    if isinstance(content, str):
        return "", content
    thinking = [inner["text"] for part in content if part["type"] == "thinking" for inner in part["thinking"]]
    return "".join(thinking), "".join(part["text"] for part in content if part["type"] == "text")


def _add_call(calls: dict[int, dict[str, Any]], piece: dict[str, Any]) -> None:
    """Add a piece of a tool call to what has arrived of it."""
    empty = {"id": "", "type": "function", "function": {"name": "", "arguments": ""}}
    call = calls.setdefault(int(piece.get("index") or 0), empty)
    call["id"] = piece.get("id") or call["id"]
    function = piece.get("function") or {}
    for name in ("name", "arguments"):
        call["function"][name] += function.get(name) or ""
