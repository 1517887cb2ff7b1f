"""A policy of one row between its wakings: its generator, and what it waits for."""

from __future__ import annotations

from .policies.base import RANK, Action, Policy, Trial, View, Wait, Watching
from .trial import TrialAnswer

NEVER = 1 << 60


class Sleeper:
    """A policy's generator with the condition it waits for; `closes_at` is for one that waits for the model's close."""

    __slots__ = ("at", "closes_at", "deadline", "generator", "policy", "rank")

    def __init__(self, policy: Policy, view: View) -> None:
        self.policy = policy
        self.generator: Watching | None = policy.watch(view)
        self.at = self.deadline = self.rank = 0
        self.closes_at = NEVER
        if self._settle_down(self._advance(None)) is not None:
            raise TypeError(f"policy {policy.name!r} must wait before its first action")

    def resume(self, view: View, reply: TrialAnswer | None = None) -> Action | Trial | None:
        """Run the policy up to its next sleep, bid or question; returns the bid or question."""
        view.reply = reply
        return self._settle_down(self._advance(view))

    def go_on(self, view: View) -> None:
        """Let the policy go on watching after a bid, won or lost, or a question that was not asked."""
        for _ in range(2):
            if self.resume(view) is None:
                return
        raise TypeError(f"policy {self.policy.name!r} must wait between two actions")

    def _advance(self, view: View | None) -> Wait | Action | Trial | None:
        if self.generator is None:
            return None
        try:
            return next(self.generator) if view is None else self.generator.send(view)
        except StopIteration:
            self.generator = None
            return None

    def _settle_down(self, move: Wait | Action | Trial | None) -> Action | Trial | None:
        if move is not None and not isinstance(move, Wait):
            return move
        self.at = self.deadline = self.closes_at = NEVER
        if move is not None:
            self.rank = RANK[move.boundary]
            self.deadline = NEVER if move.deadline is None else move.deadline
            if move.boundary == "close":
                self.closes_at = move.at
            else:
                self.at = move.at
        return None
