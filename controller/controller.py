"""The controller of one row: follows the phases, wakes policies, settles their bids, records every decision."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from .budgets import Budget
from .delegation import DelegationManager, without_retraction
from .helpers.engine_helper import Helper
from .pending_questions import PendingQuestions, format_error
from .policies.base import (
    Action,
    AskVerifier,
    Close,
    HelperAction,
    Inject,
    Note,
    Policy,
    PolicyView,
    ReviewDraft,
    Trial,
)
from .policy_runner import PolicyScheduler, PolicyTask, SideEffect
from .prompts import Prompt, get_question
from .text.closing import CLOSING, action_text, closing_text
from .text.marker_matcher import MarkerMatcher
from .text.markers import Markers
from .text.thoughts import ThinkingState
from .text.tokenizer_adapter import TokenizerAdapter
from .trace import Decision
from .trial_answers import MOST_TOKENS, TrialAnswer, TrialDecoder, start_trial
from .types import KEEP, Directive, StepInfo
from .verification import Verifier
from .verifiers.rule_verifier import RuleVerifier

Phase = Literal["before", "thinking", "answer"]
MOST_ACTIONS = 128
"""Of one row: policies that answer each other, or one that takes back every close, must come to an end."""


class Controller:
    """Watches one row and directs it; implements `engines.base.Watcher`.

    opened: the prompt has opened the thinking already. shadow: record what would be done, do nothing.
    prompt_tokens: see `PolicyView`. verifier: whom policies ask; None decides by rules alone. helper: who writes what
    policies delegate, from this prompt. Raises TypeError for a policy that acts before it waits, and what
    `Policy.watch` raises.
    """

    def __init__(
        self,
        policies: Sequence[Policy],
        codec: TokenizerAdapter,
        markers: Markers,
        budget: Budget,
        *,
        opened: bool = True,
        shadow: bool = False,
        closing: str = CLOSING,
        prompt_tokens: int = 0,
        verifier: Verifier | None = None,
        helper: Helper | None = None,
        prompt: Prompt = "",
    ) -> None:
        self.codec, self.markers, self.budget = codec, markers, budget
        self.shadow, self.closing = shadow, closing
        self.phase: Phase = "thinking" if opened else "before"
        self.thinking = ThinkingState(codec)
        self.decisions: list[Decision] = []
        self.position = 0
        self._open, self._close = MarkerMatcher(codec, markers.open), MarkerMatcher(codec, markers.close)
        self._end_id: int | None = codec.tokenizer.eos_token_id
        closing_cost = len(codec.encode(closing_text(markers, closing, "\n\n")))
        self.view = PolicyView(self.thinking, budget, closing_cost, get_question(prompt), prompt_tokens)
        self.asked = PendingQuestions(verifier or RuleVerifier())
        self.delegated = DelegationManager(helper, prompt, self.thinking)
        self._actions = 0  # injections and delegations
        self._said: set[str] = set()
        self._sleepers = PolicyScheduler(policies, self.view, self._hear)
        self._alarm = self._sleepers.alarm
        self._trial: TrialDecoder | None = None
        self._asking: list[PolicyTask] = []

    @property
    def verifier_tokens(self) -> int:
        """Tokens read by the verifier for this row."""
        return self.asked.tokens

    @property
    def boundary(self) -> str | None:
        """What the latest token ended in the thinking, see `ThinkingState.boundary`; None where the row does not
        think.
        """
        thinks = self.phase == "thinking" and len(self.thinking) > 0 and self._trial is None
        return self.thinking.boundary if thinks else None

    def observe(self, token: int, seen: StepInfo | None = None) -> Directive:
        """Take note of a sampled token; see `Watcher`."""
        if self._trial is not None:
            return self._tried(self._trial, token, seen)
        self.position += 1
        if self.phase == "answer":
            return KEEP
        if self.phase == "before":
            if self._open.completes(token):
                self.phase = "thinking"
            return KEEP
        self.view.seen = seen
        if self._close.completes(token):
            return self._closed(token)
        if token == self._end_id:
            return self._ended()
        thinking = self.thinking
        thinking.add(token, seen.signals if seen is not None else None)
        if len(thinking) < self._alarm[thinking.boundary]:
            return KEEP
        return self._wake()

    def _closed(self, token: int) -> Directive:
        """The model ends its thinking; a policy may take that back."""
        self._hear_verdicts()
        self.view.closing = True
        bids = self._bids(self._sleepers.at_close(len(self.thinking)))
        self.view.closing = False
        wanted = [(s, move) for s, move in bids if isinstance(move, (Inject, HelperAction))]
        directive, size = KEEP, 0
        if wanted:
            size = self._close.size([*self.thinking.ids, token])
            self.position -= size
            if not self.shadow:
                self.thinking.take_back(size - 1)  # what the marker began with was taken for thinking
            directive = self._do(*wanted[0])
        self._go_on(bids, directive)
        if directive is KEEP:
            self.position += size
            self.phase = "answer"
            return KEEP
        self._sleepers.schedule()
        return Directive(directive.force, drop=directive.drop + size, until=directive.until)

    def _ended(self) -> Directive:
        """The model ended its turn within its thinking: close that instead, or there would be no answer."""
        self.position -= 1
        directive = self._carry_out("controller", Close("the model ended its turn within its thinking", phrase=""))
        return KEEP if directive is KEEP else Directive(directive.force, drop=1)

    def _wake(self) -> Directive:
        self._hear_verdicts()
        now = len(self.thinking)
        awake = self._sleepers.awake(now, self.thinking.boundary)
        directive = KEEP
        if awake:
            region = self.thinking.protected
            if region is not None:
                awake = [s for s in awake if now >= s.deadline + self.budget.reserve // 2]
            directive = self._settle(self._bids(awake))
        self._sleepers.schedule()
        return directive

    def _bids(
        self, awake: list[PolicyTask], reply: TrialAnswer | None = None
    ) -> list[tuple[PolicyTask, Action | Trial]]:
        """What policies want to do now, as far as it can be done."""
        moves = [(s, move) for s in awake if (move := s.resume(self.view, reply)) is not None]
        return [(s, move) for s, move in moves if self._permitted(s, move)]

    def _settle(self, moves: list[tuple[PolicyTask, Action | Trial]]) -> Directive:
        """Ending or delegating beats injecting beats asking; otherwise the first policy in the list wins.

        Losers go on watching.
        """
        bids = [(s, move) for s, move in moves if not isinstance(move, Trial)]
        if not bids:
            return self._ask([s for s, _ in moves], any(isinstance(m, Trial) and m.drawn for _, m in moves))
        directive = self._do(*next((b for b in bids if isinstance(b[1], (Close, HelperAction))), bids[0]))
        self._go_on(moves, directive)
        return directive

    def _do(self, sleeper: PolicyTask, action: Action) -> Directive:
        if isinstance(action, HelperAction):
            return self._delegate(sleeper, action)
        return self._carry_out(sleeper.policy.name, action)

    def _go_on(self, moves: Sequence[tuple[PolicyTask, Action | Trial]], directive: Directive) -> None:
        """Let all that moved go on watching; whoever delegated does so when the helper has written."""
        for sleeper, _ in moves:
            if not (directive.until is not None and sleeper is self.delegated.waiting):
                self.view.helped = None
                sleeper.go_on(self.view)

    def _delegate(self, sleeper: PolicyTask, move: HelperAction) -> Directive:
        """Let the row rest until the helper has written."""
        if self.shadow:
            decision = Decision(sleeper.policy.name, "delegate", move.reason, self.position, move.lead, acted=False)
            self.decisions.append(decision)
            return KEEP
        self._actions += not isinstance(move, ReviewDraft)
        directive = self.delegated.begin(sleeper, move, self.position, self._room)
        self.position += len(directive.force) - directive.drop
        return directive

    def resume(self) -> Directive:
        """Take in what the helper wrote; see `engines.base.Resting`."""
        done = self.delegated.end()
        policy, found = done.sleeper.policy.name, done.help
        ids: tuple[int, ...] = ()
        back = 0
        if found.text is None:
            self.decisions.append(Decision(policy, "error", f"goes on alone: {found.error}", done.position))
        else:
            back, ids = self.delegated.take_in(done, self._room)
            self.position += len(ids) - back
            self._actions += done.reviewed > 0 and done.kind == "delegate"
            self.decisions.append(Decision(policy, done.kind, done.told(), done.position, found.text))
        self.view.helped = found.text
        if found.closed:
            follow = self._carry_out("helper", Close("the helper ended the thinking", phrase=""))
        else:
            bids = [bid for bid in self._bids([done.sleeper]) if not isinstance(bid[1], Trial)]
            follow = self._settle([(s, without_retraction(m)) for s, m in bids])
        self._sleepers.schedule()
        return Directive((*ids, *follow.force), drop=back, until=follow.until)

    @property
    def _room(self) -> int:
        """Thinking tokens that are left beside those that closing needs."""
        return self.budget.thinking - len(self.thinking) - self.view.closing_cost

    def _ask(self, sleepers: list[PolicyTask], drawn: bool) -> Directive:
        """Begin one trial for all that want one, unless there is no room for it."""
        if not sleepers:
            return KEEP
        forced, trial = start_trial(self.codec, self.markers, self.thinking.tail(4), self.budget.reserve, drawn)
        room = self.budget.thinking + self.budget.reserve - self.position
        if self.shadow or len(forced) + MOST_TOKENS > room:
            return self._replied(sleepers, None)
        self._trial, self._asking = trial, sleepers
        return Directive(forced, trial=True)

    def _tried(self, trial: TrialDecoder, token: int, seen: StepInfo | None) -> Directive:
        """Take in a token of the trial under way; at its end, what those that asked make of it."""
        chance = seen.signals.chosen if seen is not None and seen.signals is not None else 1.0
        if (follow := trial.take(token, chance)) is not None:
            return follow
        self._trial = None
        directive = self._replied(self._asking, trial.answer())
        self._sleepers.schedule()
        return Directive(directive.force, drop=trial.tokens, trial=False)

    def _replied(self, sleepers: list[PolicyTask], reply: TrialAnswer | None) -> Directive:
        """Tell those that asked, and do what they make of it."""
        moves = self._bids(sleepers, reply)
        for sleeper, move in moves:
            if isinstance(move, Trial):
                sleeper.leave_out(TypeError("a policy must wait between two trials"))
        return self._settle([(s, move) for s, move in moves if not isinstance(move, Trial)])

    def _permitted(self, sleeper: PolicyTask, move: Action | Trial) -> bool:
        """Whether a move can be carried out: an injection only while the thinking can still end well."""
        if not isinstance(move, (Inject, HelperAction)):
            return True
        what = "injections" if isinstance(move, Inject) else "delegations"
        needed = len(self.codec.encode(self._text_of(move) if isinstance(move, Inject) else move.lead)) + 1
        if isinstance(move, HelperAction) and self.delegated.helper is None and not self.shadow:
            reason = "no delegation: there is no helper"
        elif isinstance(move, HelperAction) and self.delegated.taken_back > self.budget.thinking:
            reason = f"no more {what}: they have taken back more than the thinking may hold"
        elif self._actions >= MOST_ACTIONS:
            reason = f"no more {what} after {MOST_ACTIONS}: policies may be undoing each other"
        elif needed > self._room:
            reason = f"no more {what}: they would take the room that closing needs"
        else:
            return True
        self._say_once(sleeper.policy.name, "note", reason)
        sleeper.go_on(self.view)
        return False

    def _hear(self, policy: str, aside: SideEffect) -> None:
        """Take in what a policy says or asks by the way, or that it failed."""
        if isinstance(aside, AskVerifier):
            self.view.ticket = self.asked.ask(aside.question)
            self._hear_verdicts()
        elif isinstance(aside, Note):
            self.decisions.append(Decision(policy, "note", aside.reason, self.position))
        else:
            self.decisions.append(Decision(policy, "error", f"left out after {format_error(aside)}", self.position))

    def _hear_verdicts(self) -> None:
        """Trace what the verifier could not tell."""
        if self.asked.open:
            for error in self.asked.troubles():
                self._say_once("verifier", "error", f"no verdict: {error}")

    def _say_once(self, who: str, action: str, reason: str) -> None:
        if reason not in self._said:
            self._said.add(reason)
            self.decisions.append(Decision(who, action, reason, self.position))

    def _text_of(self, action: Inject | Close) -> str:
        return action_text(action, self.markers, self.closing, self.thinking.tail(4))

    def _carry_out(self, policy: str, action: Inject | Close) -> Directive:
        text = self._text_of(action)
        kind = "close" if isinstance(action, Close) else "inject"
        self.decisions.append(Decision(policy, kind, action.reason, self.position, text, not self.shadow))
        self._actions += kind == "inject"
        if self.shadow:
            return KEEP
        forced = self.codec.encode(text)
        self.position += len(forced)
        if isinstance(action, Close):
            self.phase = "answer"
            self.thinking.ids.extend(forced)
        else:
            self.thinking.add_forced(forced)
        return Directive(forced)
