"""Brevity relative to the model's own samples of the same question (SER-RL, arXiv 2506.15647).

The paper's formula is not published; this one is ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...errors import OptionError
from .base import THINK, Reward, groups, needed
from .correctness import Correctness


class GroupBrevity(Reward):
    """Up to +weight/2 for the shortest right completion of a group, down to -weight/2 for the longest right one.

    0 for wrong ones, for all where right ones are equally long, and where less than `least` of the group is right:
    what is not yet learnt must not be learnt short. correct: tells what is right. thinking_only: a group are the
    completions of a question that think, by the column `mode`; others get 0.
    """

    name = "group_brevity"

    def __init__(
        self, correct: Correctness, weight: float = 0.2, least: float = 0.5, *, thinking_only: bool = False
    ) -> None:
        if not 0 < weight < 1:
            raise OptionError(f"brevity weight is {weight}; accepted: above 0 and below 1, the reward of being right")
        self.correct, self.weight, self.least, self.thinking_only = correct, weight, least, thinking_only

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
        """See `Reward`."""
        right = self.correct(prompts, completions, **columns)
        lengths = [len(ids) for ids in needed(columns, "completion_ids", self.name)]
        rewards: list[float | None] = [0.0] * len(lengths)
        modes = needed(columns, "mode", self.name) if self.thinking_only else [THINK] * len(lengths)
        for same in groups(prompts):
            group = [i for i in same if modes[i] == THINK]
            good = [i for i in group if right[i]]
            if not good or len(good) < self.least * len(group):
                continue
            shortest, longest = min(lengths[i] for i in good), max(lengths[i] for i in good)
            for i in good if shortest < longest else []:
                rewards[i] = self.weight * (0.5 - (lengths[i] - shortest) / (longest - shortest))
        return rewards
