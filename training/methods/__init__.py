"""The methods by name; each module has `RECIPE`, `validate_recipe` and `run`."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from ...errors import unknown

METHODS = {
    "adaptthink": "Learn by RL to answer at once where thinking adds nothing (AdaptThink).",
    "adar1": "Mix long and short thinking, and learn from pairs which a question wants (AdaR1).",
    "apo": "Learn by RL on forced and free completions to think only where that pays (APO).",
    "mahdpo": "Learn a head for each objective by DPO, to be weighed at inference (MAH-DPO).",
    "hint": "Learn the embeddings of a hint, and nothing else (ConciseHint-T).",
    "ser": "Learn by RL to be right and brief, measured by one's own answers (SER-RL).",
    "sft": "Learn one's own shortest right completions, or those that a controller shortened.",
    "shortcut": "Learn an adapter by which easy tokens leave the model early, and nothing else (System-1.5).",
    "vsrm": "Learn by RL with a reward for every step of the thinking, or analyse where it is wasted (VSRM).",
}
"""Method -> what it does, for the help of `tersely train`."""


def method(name: str) -> Any:
    """The module of a method; raises OptionError for an unknown one."""
    if name not in METHODS:
        raise unknown("method", name, METHODS)
    home = "..research." if name in ("mahdpo", "shortcut") else "."
    return import_module(f"{home}{name}", __name__)
