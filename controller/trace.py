"""Results of a generation: text in its parts, usage by kind of token, and every decision with its reason."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from .text.answers import extract_answer
from .types import Signals

Kind = Literal["sampled", "forced"]
OVERHEAD = ("discarded", "trial", "verifier", "helper_completion", "helper_prompt", "recomputed")
"""Kinds of `Usage` that are paid for in addition to the text."""


@dataclass(frozen=True, slots=True)
class Decision:
    """One thing that a policy did (or, with `acted` false, would have done) and why, after `position` output tokens."""

    policy: str
    action: str
    reason: str
    position: int
    text: str = ""
    acted: bool = True
    tokens: int = 0  # spent on it in a request of its own


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one generation by kind."""

    prompt: int = 0
    thinking: int = 0
    answer: int = 0
    injected: int = 0  # those of the thinking and the answer that were not sampled
    discarded: int = 0  # sampled and dropped again
    trial: int = 0  # of trial answers
    verifier: int = 0  # read by the verifier
    helper_completion: int = 0  # written by the helper
    helper_prompt: int = 0  # read by the helper
    recomputed: int = 0  # read twice: of the prompt, or behind a text that was put before them

    @property
    def overhead(self) -> int:
        """Tokens spent beyond the text itself."""
        return sum(getattr(self, kind) for kind in OVERHEAD)

    @property
    def total(self) -> int:
        """All tokens spent beyond the prompt."""
        return self.thinking + self.answer + self.overhead

    def as_dict(self) -> dict[str, int]:
        return {**asdict(self), "overhead": self.overhead, "total": self.total}


@dataclass(frozen=True, slots=True)
class Span:
    """A run of output tokens of one kind."""

    kind: Kind
    text: str


@dataclass(frozen=True, slots=True)
class GenerationResult:
    """The result of one request; `text` is everything after the prompt."""

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
    """One per token where they were requested, None at forced tokens; otherwise empty."""

    def as_dict(self) -> dict[str, Any]:
        """The JSON form of the command line."""
        return {
            "answer": extract_answer(self.answer),
            "text": self.text,
            "thinking": self.thinking,
            "tier": self.tier,
            "finish_reason": self.finish_reason,
            "usage": self.usage.as_dict(),
            "decisions": [asdict(d) for d in self.trace],
        }
