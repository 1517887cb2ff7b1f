"""ConciseHint (arXiv 2506.18810): ask for brevity in the middle of thinking, the more rarely the longer it gets."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import count, takewhile
from typing import Any, ClassVar

from ...errors import OptionError
from ..text.markers import KNOWN
from .base import PARAGRAPH, Inject, PolicyView, Wait, Watching

HINT_TOKEN = "<|hint_{}|>"
"""Name of a token whose embedding is part of a learnt hint, by its number.

They stand for the words and the paragraph's end behind them, for tokenizers have one token for the end of both.
"""
_CLAUSE = re.compile(r"[^\d\s][.,]\s*$")


@dataclass(frozen=True, slots=True)
class ConciseHint:
    """Inject `text` once per block of tau = min(longest, alpha + beta * length) tokens, length being what came before.

    The place within a block moves from its head to 80 % of it as blocks grow, then to the next sentence end; a block
    without one gets no hint. The paper injects into a finished block and re-reads the rest; here the hint is set when
    its place is reached, which re-reads nothing. earliest: no hint before this many tokens (the paper's formula sets
    the first one at once, before there is anything to shorten). limit: most hints per thinking. whole: length counts
    the prompt as well, clauses: a comma is place enough, both as in the paper. learnt: the hint that `tersely train
    hint` taught this model, in place of `text`. Raises OptionError for a text that the model would take for more than
    words.
    """

    name: ClassVar[str] = "hint"
    needs: ClassVar[frozenset[str]] = frozenset()
    text: str = "[Be concise.]"
    alpha: int = 128
    beta: float = 0.2
    longest: int = 1024
    earliest: int = 32
    limit: int = 16
    whole: bool = False
    clauses: bool = False
    learnt: bool = False

    def __post_init__(self) -> None:
        if not self.text.strip():
            raise OptionError("the hint is empty; accepted: a few words that ask for brevity")
        if found := [marker for pair in KNOWN for marker in pair if marker in self.text]:
            raise _refused(self.text, found[0])

    def interval(self, length: int) -> int:
        """Length of the block that starts after so many tokens."""
        return min(self.longest, int(self.alpha + self.beta * length))

    def offset(self, interval: int) -> int:
        """Where in a block of this length the hint's place begins."""
        return int(interval * min((interval - self.alpha) / 1024, 0.8))

    def watch(self, view: PolicyView) -> Watching:
        """See `Policy.watch`."""
        codec = view.thinking.codec
        if self.learnt:
            if not (text := learnt_hint(codec.tokenizer)):
                raise OptionError("this model has learnt no hint; `tersely train hint` teaches it one")
            return self._hints(view, text, after="")
        added = {i: name for name, i in codec.tokenizer.get_added_vocab().items() if name.strip()}
        special = set(getattr(codec.tokenizer, "all_special_ids", ()))
        if found := [token for token in codec.encode(self.text) if token in added or token in special]:
            raise _refused(self.text, codec.decode(found[:1]))
        return self._hints(view, self.text, PARAGRAPH)

    def _hints(self, view: PolicyView, text: str, after: str) -> Watching:
        start, tau = 0, self.alpha
        for number in range(1, self.limit + 1):
            place, end = max(1, self.earliest, start + self.offset(tau)), start + tau
            if self.clauses:
                view = yield Wait(at=place, boundary="token")
                while view.tokens < end and not _CLAUSE.search(view.thinking.tail(2)):
                    view = yield Wait(at=view.tokens + 1, boundary="token")
            else:
                view = yield Wait(at=place, boundary="sentence", deadline=end)
            before = view.tokens
            if before < end:
                view = yield Inject(text, f"hint {number}, block of {tau} tokens", after)
            start = max(end + view.tokens - before, view.tokens)
            tau = self.interval(start + (view.prompt_tokens if self.whole else 0))


def _refused(text: str, token: str) -> OptionError:
    return OptionError(f"the hint {text!r} holds {token!r}, which is no text to this model; accepted: plain words")


def learnt_hint(tokenizer: Any) -> str:
    """The text of the hint that a model has learnt; empty if it has learnt none."""
    known = tokenizer.get_added_vocab()
    names = takewhile(known.__contains__, map(HINT_TOKEN.format, count()))
    return "".join(names)
