"""Rewards as picklable callables with TRL's signature; `plain` has the same for verl and OpenRLHF."""

from __future__ import annotations

from .adaptthink import NoThinkBonus, ReferenceBaseline
from .adherence import HintBudget, TierAdherence
from .apo import AdaptiveDiscount
from .base import Reward
from .brevity import GroupBrevity
from .correctness import Correctness

__all__ = [
    "AdaptiveDiscount",
    "Correctness",
    "GroupBrevity",
    "HintBudget",
    "NoThinkBonus",
    "ReferenceBaseline",
    "Reward",
    "TierAdherence",
]
