"""Rewards shared by several methods: picklable callables with TRL's signature.

Rewards of a single method are in that method's module. `framework_adapters` has rewards for verl and OpenRLHF.
"""

from __future__ import annotations

from .base import Correctness, Reward
from .length import GroupBrevity, HintBudget, TierAdherence

__all__ = ["Correctness", "GroupBrevity", "HintBudget", "Reward", "TierAdherence"]
