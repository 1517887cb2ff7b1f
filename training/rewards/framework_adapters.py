"""The rewards as plain functions with the signatures of verl and OpenRLHF.

verl: set `reward.custom_reward_function.path=pkg://tersely.training.rewards.framework_adapters` and its `name` to
`compute_score`. OpenRLHF: `--reward.remote_url` takes a file with a function `reward_func`; import it there from here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from tersely.training.rewards import Correctness, TierAdherence, answer_part, gold_text, parse_number

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
    """Verl's reward function: the sum as `score`, and its parts; raises OptionError for missing or invalid data.

    `delta` rewards not thinking. `adherence` weighs keeping to the tier's budget, by `tier` and `thinking_tokens` in
    `extra_info`; a `reference` there is subtracted.
    """
    info = extra_info or {}
    right = float(_correctness().is_right(gold_text(ground_truth, "ground_truth"), answer_part(solution_str, CLOSE)))
    bonus = delta * solution_str.lstrip().startswith(CLOSE)
    columns = {name: [info[name]] for name in ("tier", "thinking_tokens") if info.get(name) is not None}
    kept = adherence * (TierAdherence()([""], [""], **columns)[0] or 0.0) if adherence else 0.0
    reference = info.get("reference")
    baseline = 0.0 if reference is None else parse_number(reference, "extra_info['reference']")
    return {
        "score": right + bonus + kept - baseline,
        "correctness": right,
        "no_think_bonus": bonus,
        "tier_adherence": kept,
    }


def reward_func(
    queries: Sequence[str], prompts: Sequence[str], labels: Sequence[str | float], **_: Any
) -> dict[str, Any]:
    """OpenRLHF's reward function: `queries` are prompts with their completions; raises OptionError for bad labels."""
    import torch

    responses = [answer_part(query.removeprefix(prompt), CLOSE) for query, prompt in zip(queries, prompts, strict=True)]
    gold = [gold_text(label, f"label {i} of this batch") for i, label in enumerate(labels)]
    right = torch.tensor(
        [_correctness().is_right(answer, response) for answer, response in zip(gold, responses, strict=True)],
        dtype=torch.float32,
    )
    return {"rewards": right, "scores": right, "extra_logs": {}}
