"""The same rewards as plain functions, in the forms that verl and OpenRLHF call.

verl: `custom_reward_function.path=.../training/rewards/plain.py custom_reward_function.name=compute_score`.
OpenRLHF: `--remote_rm_url` takes a file with a function `reward_func`; import it there from this module.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from tersely.controller.budgets import TIERS
from tersely.errors import unknown
from tersely.training.rewards.adherence import excess
from tersely.training.rewards.base import answer_part
from tersely.training.rewards.correctness import Correctness

CLOSE = "</think>"


@cache
def _correctness() -> Correctness:
    return Correctness(CLOSE)


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: str,
    extra_info: Mapping[str, Any] | None = None,
    *,
    delta: float = 0.0,
    adherence: float = 0.0,
    **_: Any,
) -> dict[str, float]:
    """verl's form: the sum under `score`, its pieces beside it.

    delta: what not thinking is worth; its baseline `extra_info["reference"]` is taken off if given. adherence: weight
    of keeping to the tier's budget, for which `extra_info` has to hold `tier` and `thinking_tokens`.
    """
    info = extra_info or {}
    right = float(_correctness().is_right(ground_truth, answer_part(solution_str, CLOSE)))
    bonus = delta * solution_str.lstrip().startswith(CLOSE)
    kept = 0.0
    if adherence:
        if info.get("tier") not in TIERS:
            raise unknown("tier in extra_info", str(info.get("tier")), TIERS)
        kept = adherence * excess(int(info["thinking_tokens"]), TIERS[info["tier"]].thinking)
    score = right + bonus + kept - float(info.get("reference", 0.0))
    return {"score": score, "correctness": right, "no_think_bonus": bonus, "tier_adherence": kept}


def reward_func(queries: Sequence[str], prompts: Sequence[str], labels: Sequence[str]) -> Any:
    """OpenRLHF's form: `queries` are prompts with their completions; a float tensor of ones and zeros."""
    import torch

    said = [answer_part(query.removeprefix(prompt), CLOSE) for query, prompt in zip(queries, prompts, strict=True)]
    right = [_correctness().is_right(gold, answer) for gold, answer in zip(labels, said, strict=True)]
    return torch.tensor(right, dtype=torch.float32)
