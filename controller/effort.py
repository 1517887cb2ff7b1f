"""Choosing a tier by what the model makes of the question, before the rest of the prompt is read.

The prompts of all tiers begin alike. That part is read first; the hidden state at its end tells a difficulty probe
which tier will do; the rest of that tier's prompt follows on the same cache, so the choice costs no forward of its own
(DiffAdapt, arXiv 2510.19669, reads the prefill that happens anyway as well). Where tiers part before the question, as
where a system prompt says how to think, one tier's prompt is read for the choice alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from .budgets import EFFORTS, Budget
from .prompts import Prompt, RenderedPrompt, get_question, render
from .text.markers import Markers
from .text.tokenizer_adapter import TokenizerAdapter
from .types import RoutedPrompt, State

if TYPE_CHECKING:
    from ..probes.tier_selector import TierProbe


_SEAM = 8
"""Characters at the end of a question that may be in one token with what follows it."""


def render_tiers(
    tokenizer: Any,
    prompt: Prompt,
    markers: Markers,
    budgets: Mapping[str, Budget],
    tools: Sequence[Mapping[str, Any]] = (),
) -> dict[str, RenderedPrompt]:
    """The prompt as each tier has it."""
    return {tier: render(tokenizer, prompt, budget, markers, tools) for tier, budget in budgets.items()}


def shared_prefix(rendered: Sequence[RenderedPrompt]) -> tuple[int, ...]:
    """The ids that all renderings begin with, one fewer than the shortest has at most, so that each goes on."""
    first = rendered[0].ids
    size = min(len(r.ids) for r in rendered) - 1
    for place in range(size):
        if any(r.ids[place] != first[place] for r in rendered):
            return first[:place]
    return first[:size]


@dataclass(frozen=True, slots=True)
class SharedPrefix:
    """What is read of a prompt before its tier is chosen; apart: no tier's prompt goes on from there."""

    ids: tuple[int, ...]
    apart: bool = False


def find_shared_prefix(codec: TokenizerAdapter, prompt: Prompt, known: Mapping[str, RenderedPrompt]) -> SharedPrefix:
    """What all tiers' prompts begin with if the question is in it, and otherwise what the dearest tier's holds."""
    prefix = shared_prefix(list(known.values()))
    question = get_question(prompt).strip()
    if question[: max(1, len(question) - _SEAM)] in codec.decode(prefix):
        return SharedPrefix(prefix)
    return SharedPrefix(known[max(known, key=EFFORTS.index)].ids[:-1], apart=True)


class TierSelector:
    """Chooses the tier of one row; implements `engines.base.Opening`.

    settle(tier, reason) makes that tier's row and returns its whole prompt, its watcher and its temperature.
    """

    def __init__(
        self,
        probe: TierProbe,
        look: SharedPrefix,
        longest: int,
        settle: Callable[[str, str], RoutedPrompt],
    ) -> None:
        self.probe, self.layer, self.look = probe, probe.layer, look
        self.longest = max(1, longest - len(look.ids))
        self._settle = settle

    def choose(self, state: State) -> RoutedPrompt:
        """See `Opening.choose`."""
        opened = self._settle(*self.probe.choose(state))
        if self.look.apart:
            return replace(opened, apart=True)
        return replace(opened, ids=opened.ids[len(self.look.ids) :])
