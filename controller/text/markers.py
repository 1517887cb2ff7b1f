"""How a model opens and closes its thinking: found automatically or refused, written, and noticed in its tokens.

The order: what the caller says; pairs among the tokenizer's added tokens; pairs written in the chat template. A model
with none is not a reasoning model; `PROMPTED` makes one think between text markers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...errors import MarkerError, OptionError
from .tokenizer_adapter import TokenizerAdapter, check_tokenizer

KNOWN = (
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<seed:think>", "</seed:think>"),
    ("◁think▷", "◁/think▷"),
    ("<|channel|>analysis<|message|>", "<|end|>"),
    ("<|channel>thought", "<channel|>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<mm:think>", "</mm:think>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
)


HARMONY_TURN = "<|start|>assistant"
HARMONY_ANSWER = f"{HARMONY_TURN}<|channel|>final<|message|>"


@dataclass(frozen=True, slots=True)
class Markers:
    """The opening and closing text; `source` tells where they were found."""

    open: str
    close: str
    source: str = "given"

    @property
    def close_suffix(self) -> str:
        """What models write after the closing marker: white space, or the header of the message with the answer."""
        return self.answer_header or "\n\n"

    @property
    def answer_header(self) -> str:
        """What begins the message with the answer in the harmony format of gpt-oss; "" elsewhere."""
        return HARMONY_ANSWER if self.close == "<|end|>" else ""

    @property
    def answer_prefix(self) -> str:
        """What leads into an answer after thinking that was closed for the model.

        One that was only asked to think takes a bare marker for the end of its answer, and comments on it.
        """
        return "The final answer is" if self.source == "prompted" else ""


PROMPTED = Markers("<think>", "</think>", "prompted")
PROMPT = (
    "Think before you answer. Write your thinking between <think> and </think>, in short paragraphs, "
    "then write only the final answer, with its result in \\boxed{}."
)
"""The system prompt that asks an instruct model without markers to think between `PROMPTED`."""


def parse_markers(text: str) -> Markers:
    """Markers from a command-line value `OPEN,CLOSE`; raises OptionError for another form."""
    parts = [p.strip() for p in text.split(",")]
    if len(parts) != 2 or not all(parts) or parts[0] == parts[1]:
        raise OptionError(f"markers {text!r} not understood; accepted: two different texts as OPEN,CLOSE")
    return Markers(parts[0], parts[1])


def resolve_markers(markers: Markers | str | Sequence[str] | None) -> Markers | None:
    """Markers as they are, or from a pair of texts or "OPEN,CLOSE"."""
    if markers is None or isinstance(markers, Markers):
        return markers
    if isinstance(markers, str):
        return parse_markers(markers)
    if not isinstance(markers, Sequence) or [type(text) for text in markers] != [str, str]:
        raise OptionError(f"markers is {markers!r}; accepted: Markers, (open, close) or 'OPEN,CLOSE'")
    return Markers(markers[0], markers[1])


def find_markers(tokenizer: Any) -> Markers:
    """The markers of a model's tokenizer; raises MarkerError, never guesses, and as `check_tokenizer`."""
    check_tokenizer(tokenizer)
    added = set(tokenizer.get_added_vocab())
    for opening, closing in KNOWN:
        if closing in added and any(opening.startswith(token) for token in added):
            return Markers(opening, closing, "tokenizer")
    template = getattr(tokenizer, "chat_template", None)
    for opening, closing in KNOWN:
        if isinstance(template, str) and opening in template and closing in template:
            return Markers(opening, closing, "chat template")
    raise MarkerError(
        "no thinking markers found in this model's tokenizer or chat template; give markers (OPEN,CLOSE) if it has "
        "some; `tersely run` and `bench` can also make it think, by --think-prompt (generate: think_prompt=True)"
    )


def choose_markers(tokenizer: Any, markers: Markers | None, think_prompt: bool) -> Markers:
    """The markers to use: those given, those of our own think prompt, or those found.

    A model whose chat template does not name the markers of its vocabulary may never open them, so it can be asked to.
    Raises OptionError if both are given, or a think prompt to a model whose template names markers of its own.
    """
    if not think_prompt:
        return markers or find_markers(tokenizer)
    if markers is not None:
        raise OptionError("markers and think_prompt were both given; accepted: one of them")
    try:
        found = find_markers(tokenizer)
    except MarkerError:
        return PROMPTED
    template = getattr(tokenizer, "chat_template", None)
    if not isinstance(template, str) or not any(text in template for text in (found.open, found.close)):
        return PROMPTED
    raise OptionError(f"this model's chat template has {found.open} and {found.close}; leave think_prompt out")


CLOSING_SENTENCE = "Time is short, so I answer now."


def paragraph_separator(tail: str) -> str:
    """What to write before a new paragraph, after a text that ends in `tail`."""
    return "" if tail.endswith("\n\n") or not tail else "\n" if tail.endswith("\n") else "\n\n"


def closing_text(markers: Markers, sentence: str, separator: str) -> str:
    """A closing sentence ("" for none) and everything that ends the thinking."""
    words = f"{separator}{sentence}\n" if sentence else separator
    return f"{words}{markers.close}{markers.close_suffix}{markers.answer_prefix}"


_TOKEN = "\ufdd0"
"""What stands before a marker that is a token of its own, in texts for a parser; Unicode has no such character."""


class MarkerDecoder:
    """Decodes tokens so that a marker which is a token of its own differs from the same text spelled out.

    `open` and `close` are how markers look in what `decode` returns. A marker of several tokens is only text.
    """

    def __init__(self, codec: TokenizerAdapter, markers: Markers) -> None:
        self._codec, added = codec, codec.added_tokens
        self._marked = {added[text]: _TOKEN + text for text in (markers.open, markers.close) if text in added}
        self.open, self.close = (_TOKEN + text if text in added else text for text in (markers.open, markers.close))

    def decode(self, ids: Sequence[int]) -> str:
        """The text of tokens, with markers as `open` and `close` have them."""
        pieces, start = [], 0
        for at, token in enumerate(ids):
            if token in self._marked:
                pieces += [self._decode(ids[start:at]), self._marked[token]]
                start = at + 1
        return "".join([*pieces, self._decode(ids[start:])])

    def _decode(self, ids: Sequence[int]) -> str:
        return self._codec.decode(ids).replace(_TOKEN, "\ufffd") if ids else ""


def unmark(text: str) -> str:
    """A text of `MarkerDecoder` as it reads."""
    return text.replace(_TOKEN, "")


_TAIL = 16


class MarkerMatcher:
    """Notices where a marker is complete, which may be several tokens long and fused with what follows."""

    __slots__ = ("_codec", "_marker", "_recent", "id")

    def __init__(self, codec: TokenizerAdapter, marker: str) -> None:
        self._codec, self._marker = codec, marker
        self.id = codec.added_tokens.get(marker)  # of a marker that is one added token
        self._recent: list[int] = []

    def completes(self, token: int) -> bool:
        """Whether this next token completes the marker."""
        if self.id is not None:
            return token == self.id
        self._recent.append(token)
        if not self._codec.holds(token, self._marker[-1]):
            return False
        del self._recent[:-_TAIL]
        if self._marker not in self._codec.decode(self._recent):
            return False
        self._recent.clear()
        return True

    def skip(self, tokens: Sequence[int]) -> None:
        """Take tokens that complete no marker."""
        if self.id is None:
            self._recent += tokens
            del self._recent[:-_TAIL]

    def size(self, ids: Sequence[int]) -> int:
        """How many of the last of these tokens, which the marker completes, it began in."""
        if self.id is not None:
            return 1
        last = ids[-_TAIL - 1 :]
        return next((n for n in range(1, len(last)) if self._marker in self._codec.decode(last[-n:])), len(last))
