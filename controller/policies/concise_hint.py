"""ConciseHint (arXiv 2506.18810): hints to be brief, spliced into thinking that stands, as in the authors' code."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any, ClassVar

from ..types import BindContext, Capability
from .base import BOUND, Inject, Note, Policy, PolicyView, Wait, Watching
from .hint import require_learned_hint

_PROBE = "a question"


@dataclass(frozen=True, slots=True)
class ConciseHint(Policy):
    """After each block of thinking, splice `text` into it, with the rest of the block behind the hint.

    A block has tau = min(longest, int(alpha + beta * length)) tokens; length is that of everything so far, the prompt
    and the hints included. The hint stands behind the first full stop or comma before a space, from the share
    min((tau - alpha) / 1024, 0.8) of the block's characters on; a block without one gets no hint. So the first hint
    comes after 128 tokens. The rest of the block is dropped and read again, which costs one prefill and counts
    as recomputed.

    Different: the place has to be the end of a token; lengths are counted by the model's own tokenizer; and no hint is
    set after the thinking, in code or in mathematics. An engine that keeps every token (vLLM) gets the hint at the end
    of the block and without turn markers, one of which would end its output there; the trace says so.
    """

    name: ClassVar[str] = "concisehint"
    text: str = "make answer concise!"
    turns: bool = True
    """Give the hint as a turn of the user, between the markers that the model's chat template has for it."""
    alpha: int = 128
    beta: float = 0.2
    longest: int = 1024
    learned: bool = False
    """Use the hint that `tersely train hint` taught this model instead of `text`."""
    splices: bool = field(default=True, metadata=BOUND)
    """Whether the engine can drop tokens."""

    def bind(self, context: BindContext) -> Policy:
        if context.engine is None or Capability.KV_ROLLBACK in context.engine.capabilities:
            return self
        return replace(self, splices=False)

    def interval(self, length: int) -> int:
        """Tokens of the block that starts after this many tokens."""
        return min(self.longest, int(self.alpha + self.beta * length))

    def watch(self, view: PolicyView) -> Watching:
        tokenizer = view.thinking.codec.tokenizer
        if self.learned:
            return self._splice(view, require_learned_hint(tokenizer))
        turn = find_turn(tokenizer) if self.turns and self.splices else None
        return self._splice(view, f"-{self.text}-" if turn is None else f"-{turn[0]}{self.text}{turn[1]}-")

    def _splice(self, view: PolicyView, hint: str) -> Watching:
        start, tau = 0, self.alpha
        while True:
            yield Wait(at=start + tau, boundary="token")
            if start == 0 and not self.splices:
                yield Note("hints stand at the end of their blocks: this engine keeps every token")
            place = self.find_place(view, start, tau)
            if place is not None:
                behind = view.tokens - start - place if self.splices else 0
                yield Inject(hint, f"a hint in a block of {tau} tokens", "", behind=behind, inline=True)
            start = view.tokens
            tau = self.interval(start + view.prompt_tokens)

    def find_place(self, view: PolicyView, start: int, tau: int) -> int | None:
        """After how many tokens of the block the hint stands; None if it has no place for one."""
        parts = [view.thinking.codec.decode([token]) for token in view.thinking.ids[start : start + tau]]
        text, ends = "".join(parts), {size: n for n, size in enumerate(accumulate(map(len, parts)), 1)}
        first = int(min(max(tau - self.alpha, 0) / 1024, 0.8) * (len(text) - 1))
        stops = (i + 1 for i in range(first, len(text) - 1) if text[i] in ".," and text[i + 1] == " ")
        return next((ends[stop] for stop in stops if stop in ends), None)


def find_turn(tokenizer: Any) -> tuple[str, str] | None:
    """What opens and what closes a user's turn in a chat template: text from a special token on, and a special token.

    None if the template has no such tokens there.
    """
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
