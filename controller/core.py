"""The controller of one row: follows the phases, wakes policies, settles their bids, records every decision."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from .budgets import Budget
from .engines.base import KEEP, Directive
from .markers import Markers
from .policies.base import RANK, Action, Close, Policy, View, Wait, Watching
from .text import Codec, Flag
from .thoughts import Thinking
from .trace import Decision

Phase = Literal["before", "thinking", "answer"]
CLOSING = "Time is short, so I answer now."
_NEVER = 1 << 60
_TAIL = 16


class _Sleeper:
    """A policy's generator with the condition it waits for."""

    __slots__ = ("at", "deadline", "generator", "policy", "rank")

    def __init__(self, policy: Policy, view: View) -> None:
        self.policy = policy
        self.generator: Watching | None = policy.watch(view)
        self.at = self.deadline = self.rank = 0

    def resume(self, view: View | None) -> Action | None:
        """Run the policy up to its next sleep or bid; returns the bid."""
        if self.generator is None:
            return None
        try:
            move = next(self.generator) if view is None else self.generator.send(view)
        except StopIteration:
            self.generator, self.at, self.deadline = None, _NEVER, _NEVER
            return None
        if not isinstance(move, Wait):
            return move
        self.at, self.rank = move.at, RANK[move.boundary]
        self.deadline = _NEVER if move.deadline is None else move.deadline
        return None


class Controller:
    """Watches one row and directs it; implements `engines.base.Watcher`.

    opened: the prompt has opened the thinking already. shadow: record what would be done, do nothing.
    """

    def __init__(
        self,
        policies: Sequence[Policy],
        codec: Codec,
        markers: Markers,
        budget: Budget,
        *,
        opened: bool = True,
        shadow: bool = False,
        closing: str = CLOSING,
    ) -> None:
        self.codec, self.markers, self.budget = codec, markers, budget
        self.shadow, self.closing = shadow, closing
        self.phase: Phase = "thinking" if opened else "before"
        self.thinking = Thinking(codec)
        self.decisions: list[Decision] = []
        self.position = 0
        self._recent: list[int] = []
        self._close_id = _single(codec, markers.close)
        self._open_id = _single(codec, markers.open)
        self._end_id: int | None = codec.tokenizer.eos_token_id
        self.view = View(self.thinking, budget, len(codec.encode(self._closing_text(closing, "\n\n"))))
        self._sleepers = [_Sleeper(p, self.view) for p in policies]
        bids = [s.resume(None) for s in self._sleepers]
        if any(bids):
            raise TypeError("a policy must wait before its first action")
        self._next = 0

    def observe(self, token: int) -> Directive:
        """Take note of a sampled token; see `Watcher`."""
        self.position += 1
        if self.phase == "answer":
            return KEEP
        if self.phase == "before":
            if self._completes(token, self.markers.open, self._open_id):
                self.phase = "thinking"
            return KEEP
        if self._completes(token, self.markers.close, self._close_id):
            self.phase = "answer"
            return KEEP
        if token == self._end_id:
            return self._ended()
        thinking = self.thinking
        thinking.add(token)
        if len(thinking) < self._next and thinking.boundary != "thought":
            return KEEP
        return self._wake()

    def _ended(self) -> Directive:
        """The model ended its turn within its thinking: close that instead, or there would be no answer."""
        self.position -= 1
        directive = self._carry_out("controller", Close("the model ended its turn within its thinking", phrase=""))
        return KEEP if directive is KEEP else Directive(directive.force, drop=1)

    def _completes(self, token: int, marker: str, marker_id: int | None) -> bool:
        """Whether this token completes a marker, which may be several tokens long and fused with what follows."""
        if marker_id is not None:
            return token == marker_id
        self._recent.append(token)
        if not self.codec.flags(token) & Flag.CLOSER:
            return False
        del self._recent[:-_TAIL]
        if marker not in self.codec.decode(self._recent):
            return False
        self._recent.clear()
        return True

    def _wake(self) -> Directive:
        now, rank = len(self.thinking), RANK[self.thinking.boundary]
        awake = [s for s in self._sleepers if (now >= s.at and rank >= s.rank) or now >= s.deadline]
        directive = KEEP
        if awake:
            region = self.thinking.protected
            if region is not None:
                awake = [s for s in awake if now >= s.deadline + self.budget.reserve // 2]
            directive = self._settle([(s, bid) for s in awake if (bid := s.resume(self.view)) is not None])
        self._next = min((min(max(s.at, now + 1), s.deadline) for s in self._sleepers), default=_NEVER)
        return directive

    def _settle(self, bids: list[tuple[_Sleeper, Action]]) -> Directive:
        """Closing beats injecting; otherwise the first policy in the list wins; losers go on watching."""
        if not bids:
            return KEEP
        sleeper, action = next((b for b in bids if isinstance(b[1], Close)), bids[0])
        directive = self._carry_out(sleeper.policy.name, action)
        for other, _ in bids:
            for _ in range(2):
                if other.resume(self.view) is None:
                    break
            else:
                raise TypeError(f"policy {other.policy.name!r} must wait between two actions")
        return directive

    def _carry_out(self, policy: str, action: Action) -> Directive:
        tail = self.thinking.tail(4)
        lead = "" if tail.endswith("\n\n") or not tail else "\n" if tail.endswith("\n") else "\n\n"
        if isinstance(action, Close):
            phrase = self.closing if action.phrase is None else action.phrase
            text = self._closing_text(phrase, lead)
        else:
            text = f"{lead}{action.text}\n\n"
        kind = "close" if isinstance(action, Close) else "inject"
        self.decisions.append(Decision(policy, kind, action.reason, self.position, text, not self.shadow))
        if self.shadow:
            return KEEP
        forced = self.codec.encode(text)
        self.position += len(forced)
        if kind == "close":
            self.phase = "answer"
            self.thinking.ids.extend(forced)
        else:
            self.thinking.add_forced(forced)
        return Directive(forced)

    def _closing_text(self, phrase: str, lead: str) -> str:
        words = f"{lead}{phrase}\n" if phrase else lead
        return f"{words}{self.markers.close}{self.markers.after}{self.markers.answering}"


def _single(codec: Codec, marker: str) -> int | None:
    """The id of a marker that is one added token, else None."""
    added = codec.tokenizer.get_added_vocab()
    found = added.get(marker)
    return None if found is None else int(found)
