"""The same rewards as plain functions, in the forms that verl and OpenRLHF call.

verl: `reward.custom_reward_function.path=pkg://tersely.training.rewards.plain`, and `compute_score` as its `name`.
OpenRLHF: `--reward.remote_url` takes a file with a function `reward_func`; import it there from this module.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from tersely.controller.budgets import TIERS
from tersely.errors import OptionError, unknown
from tersely.training.rewards.adherence import excess
from tersely.training.rewards.base import answer_part, gold_text, parse_number
from tersely.training.rewards.correctness import Correctness

CLOSE = "</think>"


@cache
def _correctness() -> Correctness:
    return Correctness(CLOSE)


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: str | float,
    extra_info: Mapping[str, Any] | None = None,
    *,
    delta: float = 0.0,
    adherence: float = 0.0,
    **_: Any,
) -> dict[str, float]:
    """verl's form: the sum under `score`, its pieces beside it; raises OptionError for data that say too little.

    delta: what not thinking is worth; its baseline `extra_info["reference"]` is taken off if given. adherence: weight
    of keeping to the tier's budget, for which `extra_info` has to hold `tier` and `thinking_tokens`.
    """
    info = extra_info or {}
    right = float(_correctness().is_right(gold_text(ground_truth, "ground_truth"), answer_part(solution_str, CLOSE)))
    bonus = delta * solution_str.lstrip().startswith(CLOSE)
    kept = adherence * _excess(info) if adherence else 0.0
    reference = info.get("reference")
    before = 0.0 if reference is None else parse_number(reference, "extra_info['reference']")
    return {
        "score": right + bonus + kept - before,
        "correctness": right,
        "no_think_bonus": bonus,
        "tier_adherence": kept,
    }


def _excess(info: Mapping[str, Any]) -> float:
    """How far the thinking of a completion exceeds its tier's budget; see `excess`."""
    tier, tokens = info.get("tier"), info.get("thinking_tokens")
    if not isinstance(tier, str) or tier not in TIERS:
        raise unknown("tier in extra_info", str(tier), TIERS)
    if tokens is None:
        raise OptionError(
            "extra_info has no 'thinking_tokens', which adherence goes by; accepted: how many tokens of the completion "
            "are thinking; put it there, or leave adherence out"
        )
    return excess(int(parse_number(tokens, "extra_info['thinking_tokens']")), TIERS[tier].thinking)


def reward_func(queries: Sequence[str], prompts: Sequence[str], labels: Sequence[str | float], **_: Any) -> Any:
    """OpenRLHF's form: `queries` are prompts with their completions; `rewards` and `scores`, float ones and zeros.

    Raises OptionError for a label that is no answer.
    """
    import torch

    said = [answer_part(query.removeprefix(prompt), CLOSE) for query, prompt in zip(queries, prompts, strict=True)]
    gold = [gold_text(label, f"label {place} of this batch") for place, label in enumerate(labels)]
    right = torch.tensor(
        [_correctness().is_right(wanted, answer) for wanted, answer in zip(gold, said, strict=True)],
        dtype=torch.float32,
    )
    return {"rewards": right, "scores": right, "extra_logs": {}}
