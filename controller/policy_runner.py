"""A policy of one row between its wakings: its generator, and what it waits for.

Whatever a policy raises ends this policy and nothing else: `hear` is told, the row goes on without it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .policies.base import (
    RANK,
    Action,
    AskVerifier,
    Close,
    HelperAction,
    Inject,
    Move,
    Note,
    Policy,
    PolicyView,
    Trial,
    Wait,
    Watching,
)
from .trial_answers import TrialAnswer

NEVER = 1 << 60
MOST_ASIDES = 64
"""Most notes and questions of a policy between two of its waits, or it might never come to an end."""

SideEffect = Note | AskVerifier | Exception


class PolicyTask:
    """A policy's generator with the condition it waits for; `closes_at` is for one that waits for the model's close.

    hear: takes in what a policy says or asks by the way. Raises what `policy.watch` itself raises, and TypeError for a
    policy that acts before it waits: both are mistakes that every request would show.
    """

    __slots__ = ("at", "closes_at", "deadline", "generator", "hear", "policy", "rank")

    def __init__(self, policy: Policy, view: PolicyView, hear: Callable[[str, SideEffect], None]) -> None:
        self.policy, self.hear = policy, hear
        self.generator: Watching | None = policy.watch(view)
        self.at = self.deadline = self.rank = 0
        self.closes_at = NEVER
        if self._advance(view, begins=True) is not None:
            raise TypeError(f"policy {policy.name!r} must wait before its first action")

    def resume(self, view: PolicyView, reply: TrialAnswer | None = None) -> Action | Trial | None:
        """Run the policy up to its next sleep, bid or trial; returns the bid or trial."""
        view.reply = reply
        return self._advance(view)

    def go_on(self, view: PolicyView) -> None:
        """Let the policy go on watching after a bid, won or lost, or a trial that was not made."""
        for _ in range(2):
            if self.resume(view) is None:
                return
        self.leave_out(TypeError("a policy must wait between two actions"))

    def leave_out(self, error: Exception) -> None:
        """Go on without this policy."""
        self.generator = None
        self.at = self.deadline = self.closes_at = NEVER
        self.hear(self.policy.name, error)

    def _advance(self, view: PolicyView, begins: bool = False) -> Action | Trial | None:
        if self.generator is None:
            return None
        try:
            move = next(self.generator) if begins else self.generator.send(view)
            for _ in range(MOST_ASIDES):
                if not isinstance(move, (Note, AskVerifier)):
                    return self._settle_down(move)
                self.hear(self.policy.name, move)
                move = self.generator.send(view)
            raise TypeError(f"a policy must wait after at most {MOST_ASIDES} notes or questions")
        except StopIteration:
            self.generator = None
            self.at = self.deadline = self.closes_at = NEVER
        except Exception as error:  # a policy is anybody's code
            self.leave_out(error)
        return None

    def _settle_down(self, move: Move) -> Action | Trial | None:
        """Go to sleep as a wait says; hand on anything else."""
        if isinstance(move, (Close, HelperAction, Inject, Trial)):
            return move
        if not isinstance(move, Wait):
            raise TypeError(
                f"a policy yielded {move!r}; accepted: Wait, Inject, Close, Delegate, Revise, Consult, Trial, Note, Ask"
            )
        # Compared here, since what cannot be compared must not reach the loop of the tokens.
        at, deadline = max(0, move.at), NEVER if move.deadline is None else max(0, move.deadline)
        self.rank, self.deadline = RANK[move.boundary], deadline
        self.at, self.closes_at = (NEVER, at) if move.boundary == "close" else (at, 0 if move.closes else NEVER)
        return None


class PolicyScheduler:
    """The policies of one row. `alarm`: from how many tokens on each kind of boundary wakes somebody."""

    def __init__(self, policies: Sequence[Policy], view: PolicyView, hear: Callable[[str, SideEffect], None]) -> None:
        self.all = [PolicyTask(policy, view, hear) for policy in policies]
        self.alarm: dict[str, int] = {}
        self.schedule()

    def schedule(self) -> None:
        """Set the alarm anew, after policies have moved."""
        first = NEVER
        for boundary, rank in RANK.items():
            for sleeper in self.all:
                first = min(first, sleeper.deadline, sleeper.at if sleeper.rank <= rank else NEVER)
            self.alarm[boundary] = first

    def awake(self, tokens: int, boundary: str) -> list[PolicyTask]:
        """Who wakes after so many tokens, at this boundary."""
        rank = RANK[boundary]
        return [s for s in self.all if (tokens >= s.at and rank >= s.rank) or tokens >= s.deadline]

    def at_close(self, tokens: int) -> list[PolicyTask]:
        """Who wakes where the model ends its thinking."""
        return [s for s in self.all if tokens >= s.closes_at]
