"""The controller of one row: follows the phases, wakes policies, settles their bids, records every decision."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from .budgets import Budget
from .engines.base import KEEP, Directive, Seen
from .markers import Markers
from .policies.base import RANK, Action, Close, Inject, Policy, Trial, View
from .sleeper import NEVER, Sleeper
from .text import Codec, Flag
from .thoughts import Thinking
from .trace import Decision
from .trial import LEAD, MOST_TOKENS, TrialAnswer, TrialRun

Phase = Literal["before", "thinking", "answer"]
CLOSING = "Time is short, so I answer now."
_TAIL = 16


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
        self._sleepers = [Sleeper(p, self.view) for p in policies]
        self._next = 0
        self._trial: TrialRun | None = None
        self._asking: list[Sleeper] = []

    def observe(self, token: int, seen: Seen | None = None) -> Directive:
        """Take note of a sampled token; see `Watcher`."""
        if self._trial is not None:
            return self._tried(self._trial, token, seen)
        self.position += 1
        if self.phase == "answer":
            return KEEP
        if self.phase == "before":
            if self._completes(token, self.markers.open, self._open_id):
                self.phase = "thinking"
            return KEEP
        self.view.seen = seen
        if self._completes(token, self.markers.close, self._close_id):
            return self._closed(token)
        if token == self._end_id:
            return self._ended()
        thinking = self.thinking
        thinking.add(token, seen.signals if seen is not None else None)
        if len(thinking) < self._next and thinking.boundary != "thought":
            return KEEP
        return self._wake()

    def _closed(self, token: int) -> Directive:
        """The model ends its thinking; a policy may take that back."""
        awake = [s for s in self._sleepers if len(self.thinking) >= s.closes_at]
        bids = [(s, move) for s in awake if (move := s.resume(self.view)) is not None]
        injects = [(s, move) for s, move in bids if isinstance(move, Inject)]
        directive, size = KEEP, 0
        if injects:
            size = 1 if self._close_id is not None else self._size_of_close(token)
            self.position -= size
            if not self.shadow:
                self.thinking.take_back(size - 1)  # what the marker began with was taken for thinking
            directive = self._carry_out(injects[0][0].policy.name, injects[0][1])
        for sleeper, _ in bids:
            sleeper.go_on(self.view)
        if directive is KEEP:
            self.position += size
            self.phase = "answer"
            return KEEP
        self._next = 0  # who was asked may wait for something else now
        return Directive(directive.force, drop=size)

    def _size_of_close(self, token: int) -> int:
        """How many of the last tokens the closing marker began in."""
        ids = [*self.thinking.ids[-_TAIL:], token]
        sizes = (n for n in range(1, len(ids)) if self.markers.close in self.codec.decode(ids[-n:]))
        return next(sizes, len(ids))

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
            directive = self._settle([(s, move) for s in awake if (move := s.resume(self.view)) is not None])
        self._next = min((min(max(s.at, now + 1), s.deadline) for s in self._sleepers), default=NEVER)
        return directive

    def _settle(self, moves: list[tuple[Sleeper, Action | Trial]]) -> Directive:
        """Closing beats injecting beats asking; otherwise the first policy in the list wins; losers go on watching."""
        bids = [(s, move) for s, move in moves if not isinstance(move, Trial)]
        if not bids:
            return self._ask([s for s, _ in moves])
        sleeper, action = next((b for b in bids if isinstance(b[1], Close)), bids[0])
        directive = self._carry_out(sleeper.policy.name, action)
        for other, _ in moves:
            other.go_on(self.view)
        return directive

    def _ask(self, sleepers: list[Sleeper]) -> Directive:
        """Begin one trial for all that want one, unless there is no room for it."""
        if not sleepers:
            return KEEP
        tail = self.thinking.tail(4)
        forced = self.codec.encode(f"{lead_after(tail)}{self.markers.close}{self.markers.after}{LEAD}")
        room = self.budget.thinking + self.budget.reserve - self.position
        if self.shadow or len(forced) + MOST_TOKENS > room:
            return self._replied(sleepers, None)
        self._trial, self._asking = TrialRun(self.codec, len(forced)), sleepers
        return Directive(forced, trial=True)

    def _tried(self, trial: TrialRun, token: int, seen: Seen | None) -> Directive:
        """Take in a token of the trial under way; at its end, what those that asked make of it."""
        chance = seen.signals.chosen if seen is not None and seen.signals is not None else 1.0
        if not trial.take(token, chance):
            return KEEP
        self._trial = None
        directive = self._replied(self._asking, trial.answer())
        return Directive(directive.force, drop=trial.tokens, trial=False)

    def _replied(self, sleepers: list[Sleeper], reply: TrialAnswer | None) -> Directive:
        """Tell those that asked, and do what they make of it."""
        moves = [(s, move) for s in sleepers if (move := s.resume(self.view, reply)) is not None]
        if any(isinstance(move, Trial) for _, move in moves):
            raise TypeError("a policy must wait between two trials")
        return self._settle(moves)

    def _carry_out(self, policy: str, action: Action) -> Directive:
        lead = lead_after(self.thinking.tail(4))
        if isinstance(action, Close):
            phrase = self.closing if action.phrase is None else action.phrase
            text = self._closing_text(phrase, lead)
        else:
            text = f"{lead}{action.text}{action.after}"
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


def lead_after(tail: str) -> str:
    """What parts a new paragraph from a text that ends so."""
    return "" if tail.endswith("\n\n") or not tail else "\n" if tail.endswith("\n") else "\n\n"


def _single(codec: Codec, marker: str) -> int | None:
    """The id of a marker that is one added token, else None."""
    added = codec.tokenizer.get_added_vocab()
    found = added.get(marker)
    return None if found is None else int(found)
