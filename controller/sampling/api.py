"""The public face: answers by several samples of each prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...errors import unknown
from ..api import resolve_engine, resolve_helper, resolve_verifier, unwrap_single
from ..budgets import Strategy
from ..options import DEFAULT_MAX_NEW_TOKENS, GenerationOptions
from ..policies.base import Policy
from ..prompts import Prompt
from ..session import Session
from ..text.markers import Markers
from ..types import SamplingParams
from .deepconf import DeepConf
from .majority import Majority, ShortMofK
from .research.tree import Tree
from .run import sample_all
from .vote import AggregationRule

RULES: Mapping[str, AggregationRule] = {rule.name: rule for rule in (Majority(), ShortMofK(), DeepConf(), Tree())}


def sample(
    model: Any,
    tokenizer: Any = None,
    prompts: Prompt | Sequence[Prompt] = "",
    *,
    k: int = 5,
    rule: str | AggregationRule = "majority",
    effort: str = "normal",
    preset: str | None = "balanced",
    policies: Sequence[Policy | str] | None = None,
    max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS,
    answer_reserve: int | None = None,
    strategy: Strategy = "tiers",
    temperature: float | None = None,
    top_p: float | None = None,
    top_k: int | None = None,
    seed: int | None = None,
    markers: Markers | None = None,
    think_prompt: bool = False,
    probes: str | None = None,
    verifier: Any = None,
    helper: Any = None,
) -> Any:
    """Answer prompts by at most k samples each; a list of `outcome.Sampled`, or one for a single prompt.

    rule: "majority", "short", "deepconf", "tree", or a rule with settings of its own (`Majority`, `ShortMofK`,
    `DeepConf`,
    `Tree`, `Verified`). The policies act on each sample. What else there is means the same as in `generate`; a model
    that is greedy by its own defaults needs a temperature here. Samples of all prompts are decoded as one batch, and
    equal prompts are read once where the model's attention allows it.
    """
    if isinstance(rule, str):
        if rule not in RULES:
            raise unknown("rule", rule, RULES)
        rule = RULES[rule]
    options = GenerationOptions(
        effort=effort,
        preset=preset,
        policies=None if policies is None else tuple(policies),
        max_new_tokens=max_new_tokens,
        answer_reserve=answer_reserve,
        strategy=strategy,
        probes=probes,
        sampling=SamplingParams(temperature, top_p, top_k, seed),
    )
    engine, asked, helps = resolve_engine(model, tokenizer), resolve_verifier(verifier), resolve_helper(helper)
    session, chosen = Session(engine, markers, think_prompt, verifier=asked, helper=helps), rule
    return unwrap_single(prompts, lambda batch: sample_all(session, batch, options, chosen, k))
