"""The public face: answers by several samples of each prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...errors import unknown
from ..api import as_helper, as_verifier, each, engine_of
from ..budgets import Strategy
from ..options import DEFAULT_MAX_NEW_TOKENS, Options
from ..policies.base import Policy
from ..prompts import Prompt
from ..session import Session
from ..text.markers import Markers
from ..types import Sampling
from .deepconf import DeepConf
from .majority import Majority, Short
from .research.tree import Tree
from .run import sample_all
from .vote import Rule

RULES: Mapping[str, Rule] = {rule.name: rule for rule in (Majority(), Short(), DeepConf(), Tree())}


def sample(
    model: Any,
    tokenizer: Any = None,
    prompts: Prompt | Sequence[Prompt] = "",
    *,
    k: int = 5,
    rule: str | Rule = "majority",
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

    rule: "majority", "short", "deepconf", "tree", or a rule with settings of its own (`Majority`, `Short`, `DeepConf`,
    `Tree`, `Verified`). The policies act on each sample. What else there is means the same as in `generate`; a model
    that is greedy by its own defaults needs a temperature here. Samples of all prompts are decoded as one batch, and
    equal prompts are read once where the model's attention allows it.
    """
    if isinstance(rule, str):
        if rule not in RULES:
            raise unknown("rule", rule, RULES)
        rule = RULES[rule]
    options = Options(
        effort=effort,
        preset=preset,
        policies=None if policies is None else tuple(policies),
        max_new_tokens=max_new_tokens,
        answer_reserve=answer_reserve,
        strategy=strategy,
        probes=probes,
        sampling=Sampling(temperature, top_p, top_k, seed),
    )
    engine, asked, helps = engine_of(model, tokenizer), as_verifier(verifier), as_helper(helper)
    session, chosen = Session(engine, markers, think_prompt, verifier=asked, helper=helps), rule
    return each(prompts, lambda batch: sample_all(session, batch, options, chosen, k))
