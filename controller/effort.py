"""Effort `auto`: choose a tier by what the model makes of the question, before it starts to think.

The prompts of all tiers begin alike. The hidden state at the end of that prefix tells a difficulty probe which tier is
enough (as in DiffAdapt, arXiv 2510.19669). Where tiers differ before the question, as where a system prompt says how to
think, the largest tier's prompt is read instead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .budgets import EFFORTS, tier_by_length
from .prompts import RenderedPrompt, as_messages, get_question
from .text.tokenizer_adapter import TokenizerAdapter
from .types import Engine, Prompt

if TYPE_CHECKING:
    from ..probes.tier_selector import TierProbe

_SEAM = 8
"""Characters at the end of a question that may share a token with what follows it."""


@dataclass(frozen=True, slots=True)
class TierChoice:
    """The tier of one prompt, why it was chosen, and the tokens that were read for that."""

    tier: str
    reason: str
    tokens: int = 0


def choose_by_length(prompt: Prompt) -> TierChoice:
    """Choose a tier by the prompt's length, where there is no difficulty probe."""
    tier = tier_by_length(str(as_messages(prompt)[-1]["content"]))
    return TierChoice(tier, f"{tier}, by the prompt's length: there is no difficulty probe for this model")


def choose_by_probe(
    engine: Engine,
    codec: TokenizerAdapter,
    probe: TierProbe,
    prompts: Sequence[Prompt],
    renderings: Sequence[Mapping[str, RenderedPrompt]],
) -> list[TierChoice]:
    """Choose the tier of each prompt by the difficulty probe.

    Args:
        renderings: of each prompt, as each tier of the probe has it.
    """
    prefixes = [find_prefix(codec, p, tiers) for p, tiers in zip(prompts, renderings, strict=True)]
    unique = list(dict.fromkeys(prefixes))  # samples of one prompt are read once
    states = engine.hidden_states(unique, probe.layer)
    choices = {ids: probe.choose(state) for ids, state in zip(unique, states, strict=True)}
    counted: set[tuple[int, ...]] = set()
    tiers = []
    for ids in prefixes:
        tier, reason = choices[ids]
        tiers.append(TierChoice(tier, reason, 0 if ids in counted else len(ids)))
        counted.add(ids)
    return tiers


def find_prefix(codec: TokenizerAdapter, prompt: Prompt, renderings: Mapping[str, RenderedPrompt]) -> tuple[int, ...]:
    """The ids that all tiers' prompts begin with if they contain the question, else the largest tier's prompt.

    At least one token of each prompt is left out.
    """
    prompts = [rendered.ids for rendered in renderings.values()]
    size = min(map(len, prompts)) - 1
    size = next((i for i in range(size) if len({ids[i] for ids in prompts}) > 1), size)
    prefix, question = prompts[0][:size], get_question(prompt).strip()
    if question[: max(1, len(question) - _SEAM)] in codec.decode(prefix):
        return prefix
    return renderings[max(renderings, key=EFFORTS.index)].ids[:-1]
