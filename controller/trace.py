"""What a generation hands back: text in its parts, usage by kind of token, and every decision with its reason."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from .types import Signals

Kind = Literal["sampled", "forced"]


@dataclass(frozen=True, slots=True)
class Decision:
    """One thing a policy did (or, with `acted` false, would have done) and why; `position` counts output tokens."""

    policy: str
    action: str
    reason: str
    position: int
    text: str = ""
    acted: bool = True


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one generation by kind.

    thinking and answer split what was written after the prompt; forced counts those of them that were not sampled.
    probe, verifier, delegated, consulted and reprefilled are overhead spent beside the text; discarded tokens were
    sampled and dropped, delegated ones written by the helper, consulted ones read by it.
    """

    prompt: int = 0
    thinking: int = 0
    answer: int = 0
    forced: int = 0
    discarded: int = 0
    probe: int = 0
    verifier: int = 0
    delegated: int = 0
    consulted: int = 0
    reprefilled: int = 0

    @property
    def overhead(self) -> int:
        """Tokens paid for beyond the text itself."""
        return self.discarded + self.probe + self.verifier + self.delegated + self.consulted + self.reprefilled

    @property
    def total(self) -> int:
        """All tokens paid for beyond the prompt."""
        return self.thinking + self.answer + self.overhead

    def as_dict(self) -> dict[str, int]:
        """All kinds with the two sums."""
        return {**asdict(self), "overhead": self.overhead, "total": self.total}


@dataclass(frozen=True, slots=True)
class Span:
    """A run of output tokens of one kind, for replaying and showing."""

    kind: Kind
    text: str


@dataclass(frozen=True, slots=True)
class GenerationResult:
    """The result of one request; `text` is all that was written after the prompt.

    signals: one per token where they were asked for, None at forced tokens; otherwise empty.
    """

    text: str
    thinking: str
    answer: str
    finish_reason: str
    tier: str
    usage: Usage
    trace: tuple[Decision, ...] = ()
    spans: tuple[Span, ...] = field(default=(), repr=False)
    token_ids: tuple[int, ...] = field(default=(), repr=False)
    signals: tuple[Signals | None, ...] = field(default=(), repr=False)

    def as_dict(self) -> dict[str, Any]:
        """The JSON form of the command line."""
        from .text.answers import extract_answer

        return {
            "answer": extract_answer(self.answer),
            "text": self.text,
            "thinking": self.thinking,
            "tier": self.tier,
            "finish_reason": self.finish_reason,
            "usage": self.usage.as_dict(),
            "decisions": [asdict(d) for d in self.trace],
        }
