"""Running the policies of one sequence: each generator with what it waits for, and who must run when.

An exception of a policy disables that policy and nothing else: it is reported, and the sequence goes on without it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from ..errors import OptionError
from .policies.base import (
    BOUNDARY_RANK,
    NEVER,
    Action,
    AskVerifier,
    Note,
    Policy,
    PolicyView,
    TextAction,
    Trial,
    TrialAnswer,
    Wait,
    Watching,
)

MAX_SIDE_EFFECTS = 64  # most notes and questions of a policy between two waits, or it might never come to an end

_SENTENCE = BOUNDARY_RANK["sentence"]


@dataclass(frozen=True, slots=True)
class PendingTrial:
    """A trial that another request answers, asked after so many tokens of the output, while the sequence goes on."""

    position: int
    reply: Future[TrialAnswer]


SideEffect = Note | AskVerifier | PendingTrial | Exception
OnSideEffect = Callable[[str, SideEffect], Any]
"""Handles a policy's note, question, trial that has its reply, or exception; what it returns is the policy's reply."""


class PolicyTask:
    """A policy's generator with the condition it waits for.

    Raises what `policy.watch` itself raises, and OptionError for one that returns no generator or acts before it waits:
    mistakes that every request would show.
    """

    __slots__ = "_on_side_effect at close_at deadline generator policy protected rank sentence_at trial".split()

    def __init__(self, policy: Policy, view: PolicyView, on_side_effect: OnSideEffect) -> None:
        self.policy, self._on_side_effect = policy, on_side_effect
        self.generator: Watching | None = policy.watch(view)
        if not hasattr(self.generator, "send"):
            raise OptionError(
                f"policy {policy.name!r} watches with {self.generator!r}; accepted: a generator, so `watch` must yield",
                code="invalid_policy",
            )
        self.at = self.deadline = self.rank = 0
        self.close_at = self.sentence_at = NEVER
        self.protected = False
        self.trial: PendingTrial | None = None
        if self.resume(None) is not None:
            raise OptionError(f"policy {policy.name!r} must wait before its first action", code="invalid_policy")

    def resume(self, reply: Any = None) -> TextAction | Trial | None:
        """Run the policy with the reply to its last action, up to its next wait, action or trial."""
        if self.generator is None or (self.trial is not None and not self.trial.reply.done()):
            return None
        if self.trial is not None:
            reply, self.trial = self._on_side_effect(self.policy.name, self.trial), None
        try:
            for _ in range(MAX_SIDE_EFFECTS):
                action = self.generator.send(reply)
                if not isinstance(action, (Note, AskVerifier)):
                    return self._schedule(action)
                reply = self._on_side_effect(self.policy.name, action)
            raise TypeError(f"a policy must wait after at most {MAX_SIDE_EFFECTS} notes or questions")
        except StopIteration:
            self._stop()
        except Exception as error:  # a policy may be anybody's code
            self.disable(error)
        return None

    def advance(self, reply: Any = None) -> None:
        """Let the policy continue after an action, whether or not it was carried out, up to its next wait."""
        for _ in range(2):
            if self.resume(reply) is None:
                return
            reply = None
        self.disable(TypeError("a policy must wait between two actions"))

    def wait_for(self, trial: PendingTrial) -> None:
        """Sleep until the first end of a sentence at which a trial has its reply."""
        self.trial, self.protected = trial, False
        self.at = self.deadline = self.close_at = NEVER
        self.sentence_at = 0

    def disable(self, error: Exception) -> None:
        self._stop()
        self._on_side_effect(self.policy.name, error)
        message = f"policy {self.policy.name!r} is disabled after {type(error).__name__}; the trace says more"
        warnings.warn(message, RuntimeWarning, stacklevel=2)  # which Python shows once

    def _stop(self) -> None:
        self.generator = None
        self.at = self.deadline = self.close_at = self.sentence_at = NEVER

    def _schedule(self, action: Action) -> TextAction | Trial | None:
        """Sleep as a wait says; return any other action."""
        if isinstance(action, (TextAction, Trial)):
            return action
        if not isinstance(action, Wait):
            raise TypeError(
                f"a policy yielded {action!r}; accepted: Wait, Inject, Close, Delegate, ReviewDraft, AskHelper, Trial, "
                "Note, AskVerifier"
            )
        # Compared here, since what cannot be compared must not reach the per-token path.
        at, deadline = max(0, action.at), NEVER if action.deadline is None else max(0, action.deadline)
        self.sentence_at = NEVER if action.sentence_at is None else max(0, action.sentence_at)
        self.rank, self.deadline, self.protected = BOUNDARY_RANK[action.boundary], deadline, action.protected
        self.at, self.close_at = (NEVER, at) if action.boundary == "close" else (at, 0 if action.or_close else NEVER)
        return None


class PolicyScheduler:
    """The policies of one sequence; `next_wakeup` is the first token count, per boundary, at which any must run."""

    def __init__(self, policies: Sequence[Policy], view: PolicyView, on_side_effect: OnSideEffect) -> None:
        self.tasks = [PolicyTask(policy, view, on_side_effect) for policy in policies]
        self.next_wakeup: dict[str, int] = {}
        self.update()

    def update(self) -> None:
        """Recompute `next_wakeup` after policies have run."""
        first = [NEVER] * len(BOUNDARY_RANK)
        for task in self.tasks:
            for rank, at in (0, task.deadline), (_SENTENCE, task.sentence_at), (task.rank, task.at):
                if at < first[rank]:
                    first[rank] = at
        self.next_wakeup.update(zip(BOUNDARY_RANK, accumulate(first, min), strict=True))

    def cancel_trials(self) -> None:
        """Give up trials without a reply yet."""
        for task in self.tasks:
            if task.trial is not None:
                task.trial.reply.cancel()

    def due(self, tokens: int, boundary: str) -> list[PolicyTask]:
        rank = BOUNDARY_RANK[boundary]
        return [
            task
            for task in self.tasks
            if (tokens >= task.at and rank >= task.rank)
            or tokens >= task.deadline
            or (rank >= _SENTENCE and tokens >= task.sentence_at)
        ]

    def due_at_close(self, tokens: int) -> list[PolicyTask]:
        """The tasks that run where the model ends its thinking."""
        return [task for task in self.tasks if tokens >= task.close_at]
