"""Hints to be brief in the middle of thinking, rarer the longer it gets: ConciseHint (arXiv 2506.18810), and ours."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import accumulate, count, takewhile
from typing import Any, ClassVar

from ...errors import OptionError
from ..text.markers import KNOWN
from ..types import BindContext, Capability
from .base import BOUND, PARAGRAPH, Inject, Note, Policy, PolicyView, Wait, Watching

HINT_TOKEN = "<|hint_{}|>"
"""Name of a token whose embedding is part of a learned hint, by its number.

The tokens stand for the words and the paragraph break after them: tokenizers merge the end of both into one token.
"""
_PROBE = "a question"


@dataclass(frozen=True, slots=True)
class BlockHint(Policy):
    """Puts `text` once into each block of tau = min(longest, int(alpha + beta * length)) tokens of thinking."""

    text: str = "[Be concise.]"
    alpha: int = 128
    beta: float = 0.2
    longest: int = 1024
    learned: bool = False  # use the hint that `tersely train hint` taught this model instead of `text`

    def interval(self, length: int) -> int:
        """Tokens of the block that starts after this many tokens."""
        return min(self.longest, int(self.alpha + self.beta * length))


@dataclass(frozen=True, slots=True)
class BrevityHint(BlockHint):
    """Inject the hint as a paragraph of its own; a block's length counts the thinking before it.

    The position within a block moves from its head to 80 % of it as blocks grow, then to the next sentence end; a block
    without one gets no hint. ConciseHint waits for the end of a block and then splices the hint into it; here it is set
    when its position is reached, so that nothing is read again. A text that the model would read as more than words is
    an OptionError.
    """

    name: ClassVar[str] = "hint"
    earliest: int = 32
    """No hint before this many tokens. The paper's formula sets the first one at once, before there is anything to
    shorten."""
    limit: int = 16

    def __post_init__(self) -> None:
        if not self.text.strip():
            raise OptionError("the hint is empty; accepted: a few words that ask for brevity")
        if found := [marker for pair in KNOWN for marker in pair if marker in self.text]:
            raise _special_token_error(self.text, found[0])

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


@dataclass(frozen=True, slots=True)
class ConciseHint(BlockHint):
    """After each block, splice the hint into it, with the rest of the block behind the hint, as in the authors' code.

    A block's length counts everything before it, the prompt and the hints included. The hint stands behind the first
    full stop or comma before a space, from the share min((tau - alpha) / 1024, 0.8) of the block's characters on; a
    block without one gets no hint. So the first hint comes after 128 tokens. The rest of the block is dropped and read
    again, which costs one prefill and counts as recomputed.

    Different: the place has to be the end of a token; lengths are counted by the model's own tokenizer; and no hint is
    set after the thinking, in code or in mathematics. An engine that keeps every token (vLLM) gets the hint at the end
    of the block and without turn markers, one of which would end its output there; the trace says so.
    """

    name: ClassVar[str] = "concisehint"
    text: str = "make answer concise!"
    turns: bool = True
    """Give the hint as a turn of the user, between the markers that the model's chat template has for it."""
    splices: bool = field(default=True, metadata=BOUND)  # whether the engine can drop tokens

    def bind(self, context: BindContext) -> Policy:
        if context.engine is None or Capability.KV_ROLLBACK in context.engine.capabilities:
            return self
        return replace(self, splices=False)

    def watch(self, view: PolicyView) -> Watching:
        tokenizer = view.thinking.codec.tokenizer
        if self.learned:
            return self._splice(view, require_learned_hint(tokenizer))
        opening, closing = (find_turn(tokenizer) if self.turns and self.splices else None) or ("", "")
        return self._splice(view, f"-{opening}{self.text}{closing}-")

    def _splice(self, view: PolicyView, hint: str) -> Watching:
        start, tau = 0, self.alpha
        while True:
            yield Wait(at=start + tau, boundary="token")
            if start == 0 and not self.splices:
                yield Note("hints stand at the end of their blocks: this engine keeps every token")
            place = self._find_place(view, start, tau)
            if place is not None:
                behind = view.tokens - start - place if self.splices else 0
                yield Inject(hint, f"a hint in a block of {tau} tokens", "", behind=behind, inline=True)
            start = view.tokens
            tau = self.interval(start + view.prompt_tokens)

    def _find_place(self, view: PolicyView, start: int, tau: int) -> int | None:
        """After how many tokens of the block the hint stands; None if it has no place for one."""
        parts = [view.thinking.codec.decode([token]) for token in view.thinking.ids[start : start + tau]]
        text, ends = "".join(parts), {size: n for n, size in enumerate(accumulate(map(len, parts)), 1)}
        first = int(min(max(tau - self.alpha, 0) / 1024, 0.8) * (len(text) - 1))
        stops = (i + 1 for i in range(first, len(text) - 1) if text[i] in ".," and text[i + 1] == " ")
        return next((ends[stop] for stop in stops if stop in ends), None)


def find_turn(tokenizer: Any) -> tuple[str, str] | None:
    """What opens and closes a user's turn in a chat template, from and to a special token; None without these."""
    if not getattr(tokenizer, "chat_template", None):
        return None
    text = str(tokenizer.apply_chat_template([{"role": "user", "content": _PROBE}], tokenize=False))
    before, found, after = text.partition(_PROBE)
    names = [name for name in tokenizer.get_added_vocab() if name.strip()]
    opening = max((before.rfind(name) for name in names), default=-1)
    closings = [(after.find(name), name) for name in names if name in after]
    if not found or opening < 0 or not closings:
        return None
    return before[opening:], min(closings)[1]


def _special_token_error(text: str, token: str) -> OptionError:
    return OptionError(f"the hint {text!r} contains the special token {token!r}; use plain text")


def find_learned_hint(tokenizer: Any, token: str = HINT_TOKEN) -> str:
    """The text of the hint that a model has learned, as tokens named `token`; empty if it has learned none."""
    vocabulary = tokenizer.get_added_vocab()
    return "".join(takewhile(vocabulary.__contains__, map(token.format, count())))


def require_learned_hint(tokenizer: Any) -> str:
    """The text of the hint that a model has learned; raises OptionError if it has learned none."""
    if not (text := find_learned_hint(tokenizer)):
        raise OptionError("this model has learned no hint; `tersely train hint` teaches it one")
    return text
