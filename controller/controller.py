"""The controller of one sequence: a state machine that follows its output, runs policies and carries out one action.

BEFORE --opening marker--> THINKING --closing marker or Close--> ANSWER. A Trial and what is handed to a helper leave
THINKING for TRIAL and WAITING and come back. A model that thinks again in its answer is noticed: after a forced close
it is closed once more. Every decision goes into the trace.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from ..errors import OptionError
from .budgets import Budget
from .delegation import DelegationManager, Helper, helper_error, without_retraction
from .policies.base import (
    NEVER,
    Boundary,
    Close,
    HelperAction,
    Inject,
    Note,
    Policy,
    PolicyView,
    ReviewDraft,
    TextAction,
    Trial,
    TrialAnswer,
)
from .policy_runner import PendingTrial, PolicyScheduler, PolicyTask, SideEffect
from .prompts import get_question
from .text.markers import CLOSING_SENTENCE, MarkerMatcher, Markers, closing_text
from .text.thoughts import AnswerWatch, ThinkingState, ThinksAgain
from .text.tokenizer_adapter import TokenizerAdapter
from .trace import Decision
from .trials import AnswerTrial, AskTrial, TrialManager
from .types import KEEP, Directive, Prompt, Signals, StepInfo
from .verification import PendingQuestions, RuleVerifier, Verifier, format_error

MAX_FORCED_CLOSES = 3  # most closings of one sequence; a model that thinks on after them without markers is left alone
FINAL_HEADER = "**Final answer**\n\n"  # what leads into an answer after a second forced close
MAX_ACTIONS = 128  # most actions per sequence, so that policies that undo each other come to an end


class ControllerState(Enum):
    """Where a sequence is."""

    BEFORE = "before"  # the model has not opened its thinking
    THINKING = "thinking"
    TRIAL = "trial"  # a trial answer is decoded; its tokens are dropped at its end
    WAITING = "waiting"  # the sequence is suspended until its helper has answered
    ANSWER = "answer"  # no policy acts any more


_THINKING = ControllerState.THINKING  # which is looked up for each token


@dataclass(frozen=True, slots=True)
class Proposal:
    """What a policy wants done."""

    task: PolicyTask
    action: TextAction | Trial


class Controller:
    """Follows one sequence and directs it; implements `types.SuspendableWatcher`.

    Raises OptionError for a policy that acts before it waits. What `Policy.watch` raises is not caught either.

    Args:
        policies: in the order of their precedence.
        opened: the prompt has opened the thinking already.
        shadow: record what would be done and do nothing.
        held: the budget is a ceiling: an answer quotes no opening marker, each begins thinking.
        verifier: answers the policies' questions; None decides by rules only.
        prompt: the text or messages, for policies and the helper.
        answer_trial, ask_trial: see `TrialManager`.
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
        held: bool = False,
        prompt_tokens: int = 0,
        verifier: Verifier | None = None,
        helper: Helper | None = None,
        prompt: Prompt = "",
        answer_trial: AnswerTrial | None = None,
        ask_trial: AskTrial | None = None,
    ) -> None:
        self.codec, self.markers, self.budget, self.shadow, self.held = codec, markers, budget, shadow, held
        self.state = ControllerState.THINKING if opened else ControllerState.BEFORE
        self.thinking = ThinkingState(codec)
        self.decisions: list[Decision] = []
        self.position = 0
        self.questions = PendingQuestions(verifier or RuleVerifier())
        self.delegations = DelegationManager(helper, prompt, self.thinking)
        self.trials = TrialManager(codec, markers, budget, self.thinking, answer_trial, ask_trial)
        self._close = MarkerMatcher(codec, markers.close)
        self._eos: int | None = codec.tokenizer.eos_token_id
        costs = [len(codec.encode(closing_text(markers, one, "\n\n"))) for one in (CLOSING_SENTENCE, "")]
        closing_cost = costs[budget.thinking < 2 * costs[0]]  # a small budget does not fit a sentence
        self.view = PolicyView(self.thinking, budget, closing_cost, get_question(prompt), prompt_tokens)
        self._actions = 0  # injections and delegations
        self._noted: set[str] = set()
        self._scheduler = PolicyScheduler(policies, self.view, self._on_side_effect)
        self._next_wakeup = self._scheduler.next_wakeup
        self._answer = None if opened else self._watch_answer(forced=False)
        self._closes = 0  # forced ones
        self._in_region = False  # whether policies run inside code, math or a tool call

    # -- facts for the session and for forward modifiers

    @property
    def boundary(self) -> str | None:
        """What the latest token ended (see `ThinkingState.boundary`); None outside the thinking."""
        thinks = self.state in (ControllerState.THINKING, ControllerState.WAITING) and len(self.thinking) > 0
        return (self.thinking.boundary or None) if thinks else None

    def patience(self, boundary: Boundary) -> int:
        """How many more tokens may come before this must see them: none ends more than `boundary`, or a marker."""
        if self.state is ControllerState.THINKING:
            return self._next_wakeup[boundary] - len(self.thinking) - 1
        watched = self._answer is not None and self._answer.reads_words
        return 0 if watched or self.state in (ControllerState.TRIAL, ControllerState.WAITING) else NEVER

    @property
    def finished(self) -> bool:
        """Whether nothing is left to follow."""
        return self.state is ControllerState.ANSWER and self._answer is None

    def skip(self, tokens: Sequence[int], signals: Sequence[Signals | None] = ()) -> None:
        """Take sampled tokens within `patience`: the same as observing each, and cheaper."""
        self.position += len(tokens)
        if self.state is ControllerState.THINKING:
            self._close.skip(tokens)
            self.thinking.extend(tokens, signals)
        elif self._answer is not None:
            self._answer.extend(tokens)

    def observe(self, token: int, step: StepInfo | None = None) -> Directive:
        if self.state is not _THINKING:
            return self._observe_outside(token, step)
        self.position += 1
        close, thinking = self._close, self.thinking
        closes = token == close.id or (close.id is None and close.completes(token))
        if not closes:
            if token == self._eos:
                return self._on_end_of_turn()
            thinking.add(token, None if step is None else step.signals)
            if len(thinking.ids) < self._next_wakeup[thinking.boundary]:
                return KEEP
        self.view._step = step
        directive = self._on_model_close(token) if closes else self._on_wakeup()
        if directive is KEEP:
            self.view._step = None  # it holds the hidden states of a whole batch
        return directive

    def _observe_outside(self, token: int, step: StepInfo | None) -> Directive:
        """Process a token that belongs to no thinking."""
        if self.state is ControllerState.TRIAL:
            return self._observe_trial(token, step)
        self.position += 1
        thinks_again = None if self._answer is None else self._answer.add(token)
        if thinks_again is None:
            return KEEP
        return self._on_open() if self.state is ControllerState.BEFORE else self._on_thinks_again(thinks_again)

    def skip_thinking(self) -> None:
        """Follow nothing: the prompt has ended the thinking already."""
        self.state, self._answer = ControllerState.ANSWER, None

    def _on_open(self) -> Directive:
        """The model opens its thinking; what it wrote before counts against the budget."""
        assert self._answer is not None
        before, opening = self._answer.ids, self._answer.opening()
        if self.codec.decode(before[: len(before) - len(opening)]).strip():
            self.thinking.add_forced(before)
            self.thinking.boundary = ""  # the latest token ended nothing of the thinking
        self.state, self._answer = ControllerState.THINKING, None
        return KEEP

    def _on_wakeup(self) -> Directive:
        """Policies are due."""
        self._note_missing_verdicts()
        tokens = len(self.thinking)
        due = self._scheduler.due(tokens, self.thinking.boundary)
        if any(not task.protected for task in due) and self.thinking.protected is not None:
            # Inside code, math or a tool call only late deadlines count, and who asked to be woken there.
            due = [task for task in due if task.protected or tokens >= task.deadline + self.budget.reserve // 2]
            self._in_region = True
        directive = self._run_policies(due)
        self._in_region = False
        self._scheduler.update()
        return directive

    def _on_model_close(self, token: int) -> Directive:
        """The model ends its thinking; a policy may make it continue."""
        self._note_missing_verdicts()
        self.view._closing = True
        proposals = self._collect(self._scheduler.due_at_close(len(self.thinking)))
        self.view._closing = False
        winner = next((p for p in proposals if isinstance(p.action, (Inject, HelperAction))), None)
        directive, marker_size = KEEP, 0
        if winner is not None:
            marker_size = self._close.size([*self.thinking.ids, token])
            self.position -= marker_size
            if not self.shadow:
                self.thinking.retract(marker_size - 1)  # the beginning of the marker was taken for thinking
            directive = self._execute(winner)
        self._advance(proposals, winner, directive)
        if directive is KEEP:
            self.position += marker_size
            self._begin_answer(forced=False)
            return KEEP
        self._scheduler.update()
        return Directive(directive.force, retract=directive.retract + marker_size, wait_for=directive.wait_for)

    def _on_end_of_turn(self) -> Directive:
        """The model ended its turn within its thinking: close that instead, or there would be no answer.

        A turn that ends with a tool call is left alone, as the call takes the place of an answer.
        """
        if self.thinking.ends_in_call:
            self._begin_answer(forced=False)
            return KEEP
        self.position -= 1
        directive = self._write("controller", Close("the model ended its turn within its thinking", phrase=""))
        return KEEP if directive is KEEP else Directive(directive.force, retract=1)

    def _watch_answer(self, forced: bool) -> AnswerWatch:
        return AnswerWatch(self.codec, self.markers, forced, quotes=not self.held)

    def _begin_answer(self, forced: bool) -> None:
        self._closes += forced
        self._scheduler.cancel_trials()
        self.state, self._answer = ControllerState.ANSWER, self._watch_answer(forced)

    def _on_thinks_again(self, how: ThinksAgain) -> Directive:
        """The model thinks in its answer. A forced close is final, and what came after it counts as thinking."""
        answer = self._answer
        assert answer is not None
        if not answer.forced:
            self._record("controller", "note", f"the model {how.value}")
            self.thinking.add_forced(answer.opening())
            self.state, self._answer = ControllerState.THINKING, None
            return KEEP
        if how is ThinksAgain.DELIBERATES and self._closes >= MAX_FORCED_CLOSES:
            self._note_once("controller", "note", f"the model {how.value} after {self._closes} forced closes")
            return KEEP
        self.thinking.ids.extend(answer.ids)
        if how is ThinksAgain.CLOSES:
            self._record("controller", "note", f"the model {how.value}; what it wrote before counts as thinking")
            self._answer = self._watch_answer(forced=True)
            return KEEP
        text = closing_text(self.markers, "", self.thinking.separator)
        text += "" if self.markers.answer_prefix else FINAL_HEADER
        self._record("controller", "close", f"the model {how.value} after a forced close", text=text)
        return self._force_close(text)

    def _force_close(self, text: str) -> Directive:
        forced = self.codec.encode(text)
        self.position += len(forced)
        self.thinking.ids.extend(forced)
        self._begin_answer(forced=True)
        return Directive(forced)

    def _observe_trial(self, token: int, step: StepInfo | None) -> Directive:
        """Process a token of the trial; at its end, run the policies that asked for it."""
        reply = self.trials.add(token, step)
        if isinstance(reply, Directive):
            return reply
        self.state = ControllerState.THINKING
        directive = self._run_policies(reply.tasks, reply.answer, may_try=False)
        self._scheduler.update()
        return self.trials.end(directive)

    def resume(self) -> Directive:
        """Process what the helper wrote; see `SuspendableWatcher.resume`."""
        self.state = ControllerState.THINKING
        done = self.delegations.end()
        policy, error = done.task.policy.name, done.future.exception()
        text, closed, retract = None, False, 0
        ids: tuple[int, ...] = ()
        if error is None:
            written = done.future.result()
            text, closed = written.text, written.closed
            retract, ids = self.delegations.apply(done, text, self._room)
            self.position += len(ids) - retract
            self._actions += done.reviewed > 0 and done.kind == "delegate"
            self._record(policy, done.kind, done.reason, position=done.position, text=text)
        else:
            self._record(policy, "error", f"goes on alone: {helper_error(done.future)}", position=done.position)
        if closed:
            follow = self._write("helper", Close("the helper ended the thinking", phrase=""))
        else:
            follow = self._decide(
                [
                    Proposal(proposal.task, without_retraction(proposal.action))
                    for proposal in self._collect([done.task], text)
                    if not isinstance(proposal.action, Trial)
                ]
            )
        self._scheduler.update()
        return Directive((*ids, *follow.force), retract=retract, wait_for=follow.wait_for)

    # -- from what policies want to what is done

    def _run_policies(self, tasks: Sequence[PolicyTask], reply: Any = None, may_try: bool = True) -> Directive:
        """Resume policies and carry out the strongest action that they ask for."""
        proposals = self._collect(tasks, reply)
        if not may_try:
            for proposal in proposals:
                if isinstance(proposal.action, Trial):
                    proposal.task.disable(TypeError("a policy must wait between two trials"))
            proposals = [p for p in proposals if not isinstance(p.action, Trial)]
        return self._decide(proposals)

    def _collect(self, tasks: Sequence[PolicyTask], reply: Any = None) -> list[Proposal]:
        """What policies want to do now, as far as it is possible."""
        proposals = [Proposal(task, action) for task in tasks if (action := task.resume(reply)) is not None]
        accepted = []
        for proposal in proposals:
            if (rejection := self._find_obstacle(proposal)) is None:
                accepted.append(proposal)
            elif isinstance(rejection, OptionError):
                proposal.task.disable(rejection)
            else:
                self._note_once(proposal.task.policy.name, "note", rejection)
                proposal.task.advance()
        return accepted

    def _decide(self, proposals: Sequence[Proposal]) -> Directive:
        """Closing or a helper wins over injecting, injecting over a trial; otherwise the first policy wins."""
        if not proposals:
            return KEEP
        actions = [p for p in proposals if not isinstance(p.action, Trial)]
        if not actions:
            return self._start_trial(proposals)
        winner = next((p for p in actions if isinstance(p.action, (Close, HelperAction))), actions[0])
        directive = self._execute(winner)
        self._advance(proposals, winner, directive)
        return directive

    def _advance(self, proposals: Sequence[Proposal], winner: Proposal | None, directive: Directive) -> None:
        """Let policies continue after their proposals; one that waits for the helper continues when it has answered."""
        for proposal in proposals:
            won = proposal is winner
            if not (won and directive.wait_for is not None):
                acts = isinstance(proposal.action, (Inject, Close))
                proposal.task.advance(won and directive is not KEEP if acts else None)

    def _find_obstacle(self, proposal: Proposal) -> str | OptionError | None:
        """Why an action is impossible, an error if it always is; None if the thinking can still end well after it."""
        action = proposal.action
        if not isinstance(action, (Inject, HelperAction)):
            return None
        what = "injections" if isinstance(action, Inject) else "delegations"
        text = self._render(action) if isinstance(action, Inject) else action.prefix
        if self.markers.close in text:
            return OptionError(f"a text with {self.markers.close!r} would end the thinking; use Close for that")
        if isinstance(action, HelperAction) and not self.shadow and self.delegations.helper is None:
            return "no delegation: there is no helper"
        if isinstance(action, HelperAction) and self.delegations.retracted > self.budget.thinking:
            return f"no more {what}: they have dropped more tokens than the thinking may have"
        if self._in_region and not proposal.task.protected:
            return f"no {what} inside code, math or a tool call"
        if self._actions >= MAX_ACTIONS:
            return f"no more {what} after {MAX_ACTIONS}: policies may be undoing each other"
        if len(self.codec.encode(text)) + 1 > self._room:
            return f"no more {what}: they would take the room that closing needs"
        return None

    @property
    def _room(self) -> int:
        """Thinking tokens left after reserving the closing."""
        return self.budget.thinking - len(self.thinking) - self.view.closing_cost

    def _execute(self, proposal: Proposal) -> Directive:
        action, policy = proposal.action, proposal.task.policy.name
        if isinstance(action, (Inject, Close)):
            return self._write(policy, action)
        assert isinstance(action, HelperAction)
        if self.shadow:
            self._record(policy, "delegate", action.reason, text=action.prefix, acted=False)
            return KEEP
        self._actions += not isinstance(action, ReviewDraft)
        directive = self.delegations.begin(proposal.task, action, self.position, self._room)
        self.position += len(directive.force) - directive.retract
        self.state = ControllerState.WAITING
        return directive

    def _write(self, policy: str, action: Inject | Close) -> Directive:
        kind = "close" if isinstance(action, Close) else "inject"
        aside = len(self.trials.set_aside) if kind == "close" else 0  # the thinking ends before them
        if aside and not self.shadow:
            self.trials.drop_aside()
        behind = self.thinking.retractable(action.behind) if isinstance(action, Inject) and not self.shadow else 0
        tail = tuple(self.thinking.ids[len(self.thinking) - behind :])
        if behind:
            self.thinking.retract(behind)
        text = self._render(action)
        at = self.position - aside - behind
        self._record(policy, kind, action.reason, position=at, text=text, acted=not self.shadow)
        self._actions += kind == "inject"
        if self.shadow:
            return KEEP
        self.position = at
        if isinstance(action, Close):
            return self._force_close(text)
        forced = self.codec.encode(text)
        self.position += len(forced) + behind
        self.thinking.add_forced(forced)
        for token in tail:
            self.thinking.add(token)
        return Directive((*forced, *tail), retract=behind, restored=behind)

    def _render(self, action: Inject | Close) -> str:
        """The text that an action writes here."""
        separator = self.thinking.separator
        if isinstance(action, Inject):
            return f"{'' if action.inline else separator}{action.text}{action.after}"
        sentence = CLOSING_SENTENCE if action.phrase is None else action.phrase
        text = closing_text(self.markers, sentence, separator)
        fits = len(self.codec.encode(text)) <= self.budget.thinking - len(self.thinking)
        return text if fits else closing_text(self.markers, "", separator)

    def _start_trial(self, proposals: Sequence[Proposal]) -> Directive:
        """Start a trial; policies that have its reply at once go on."""
        wanted = [(p.task, p.action) for p in proposals if isinstance(p.action, Trial)]
        reply = self.trials.start(wanted, self.position, self.shadow)
        if isinstance(reply, Directive):
            self.state = ControllerState.TRIAL if reply.trial else self.state
            return reply
        directive = self._run_policies(reply.tasks, reply.answer, may_try=False)
        self.trials.set_aside = ()  # a trial that wrote nothing leaves the thinking as it is
        return directive

    def _on_side_effect(self, policy: str, effect: SideEffect) -> Any:
        """Handle a policy's note, question or exception."""
        if isinstance(effect, Note):
            self._record(policy, "note", effect.reason, acted=not self.shadow)
        elif isinstance(effect, Exception):
            self._record(policy, "error", f"disabled after {format_error(effect)}")
        elif isinstance(effect, PendingTrial):
            return self._end_pending(policy, effect)
        else:
            future = self.questions.ask(effect.question)
            self._note_missing_verdicts()
            return future
        return None

    def _end_pending(self, policy: str, trial: PendingTrial) -> TrialAnswer | None:
        """The reply to a trial in another request; without one, no more are asked."""
        if trial.reply.cancelled():
            return None
        if (error := trial.reply.exception()) is not None:
            self.trials.failed = True
            self._note_once("trials", "error", f"goes on without trial answers: {format_error(error)}")
            return None
        answer = trial.reply.result()
        said = f"asked after {trial.position} tokens: {answer.answer!r}, with a confidence of {answer.confidence:.3f}"
        shared = any(one.action == "trial" and one.reason == said for one in self.decisions)  # by several policies
        tokens = 0 if shared else answer.tokens
        self.decisions.append(Decision(policy, "trial", said, self.position, tokens=tokens))
        return answer

    def _note_missing_verdicts(self) -> None:
        for error in self.questions.collect_errors():
            self._note_once("verifier", "error", f"no verdict: {error}")

    def _note_once(self, policy: str, action: str, reason: str) -> None:
        if reason not in self._noted:
            self._noted.add(reason)
            self._record(policy, action, reason)

    def _record(
        self, policy: str, action: str, reason: str, *, position: int | None = None, text: str = "", acted: bool = True
    ) -> None:
        at = self.position if position is None else position
        self.decisions.append(Decision(policy, action, reason, at, text, acted))
