"""Hints in the middle of thinking that ask for brevity, less often the longer it gets: our form of ConciseHint."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count, takewhile
from typing import Any, ClassVar

from ...errors import OptionError
from ..text.markers import KNOWN
from .base import PARAGRAPH, Inject, Policy, PolicyView, Wait, Watching

HINT_TOKEN = "<|hint_{}|>"
"""Name of a token whose embedding is part of a learned hint, by its number.

The tokens stand for the words and the paragraph break after them: tokenizers merge the end of both into one token.
"""


@dataclass(frozen=True, slots=True)
class BrevityHint(Policy):
    """Inject `text` once per block of tau = min(longest, alpha + beta * length) tokens; length is what came before.

    The position within a block moves from its head to 80 % of it as blocks grow, then to the next sentence end; a block
    without one gets no hint. These are the blocks of ConciseHint (arXiv 2506.18810), which waits for the end of a block
    and then splices the hint into it (see `concise_hint.ConciseHint`); here the hint is set when its position is
    reached, a paragraph of its own, so that nothing is read again. A text that the model would read as more than words
    is an OptionError.
    """

    name: ClassVar[str] = "hint"
    text: str = "[Be concise.]"
    alpha: int = 128
    beta: float = 0.2
    longest: int = 1024
    earliest: int = 32
    """No hint before this many tokens. The paper's formula sets the first one at once, before there is anything to
    shorten."""
    limit: int = 16
    learned: bool = False
    """Use the hint that `tersely train hint` taught this model instead of `text`."""

    def __post_init__(self) -> None:
        if not self.text.strip():
            raise OptionError("the hint is empty; accepted: a few words that ask for brevity")
        if found := [marker for pair in KNOWN for marker in pair if marker in self.text]:
            raise _special_token_error(self.text, found[0])

    def interval(self, length: int) -> int:
        """Length of the block that starts after this many tokens."""
        return min(self.longest, int(self.alpha + self.beta * length))

    def offset(self, interval: int) -> int:
        """Where in a block of this length the hint may be set at the earliest."""
        return int(interval * min((interval - self.alpha) / 1024, 0.8))

    def watch(self, view: PolicyView) -> Watching:
        codec = view.thinking.codec
        if self.learned:
            return self._inject_hints(view, require_learned_hint(codec.tokenizer), after="")
        added = {i: name for name, i in codec.tokenizer.get_added_vocab().items() if name.strip()}
        special = set(getattr(codec.tokenizer, "all_special_ids", ()))
        if found := [token for token in codec.encode(self.text) if token in added or token in special]:
            raise _special_token_error(self.text, codec.decode(found[:1]))
        return self._inject_hints(view, self.text, PARAGRAPH)

    def _inject_hints(self, view: PolicyView, text: str, after: str) -> Watching:
        start, tau = 0, self.alpha
        for number in range(1, self.limit + 1):
            position, end = max(1, self.earliest, start + self.offset(tau)), start + tau
            yield Wait(at=position, boundary="sentence", deadline=end)
            before = view.tokens
            if before < end:
                yield Inject(text, f"hint {number}, block of {tau} tokens", after)
            start = max(end + view.tokens - before, view.tokens)
            tau = self.interval(start)


def _special_token_error(text: str, token: str) -> OptionError:
    return OptionError(f"the hint {text!r} contains the special token {token!r}; use plain text")


def find_learned_hint(tokenizer: Any) -> str:
    """The text of the hint that a model has learned; empty if it has learned none."""
    vocabulary = tokenizer.get_added_vocab()
    names = takewhile(vocabulary.__contains__, map(HINT_TOKEN.format, count()))
    return "".join(names)


def require_learned_hint(tokenizer: Any) -> str:
    """The text of the hint that a model has learned; raises OptionError if it has learned none."""
    if not (text := find_learned_hint(tokenizer)):
        raise OptionError("this model has learned no hint; `tersely train hint` teaches it one")
    return text
