"""Choosing a tier by what the model makes of the question, before the rest of the prompt is read.

The prompts of all tiers begin alike. That part is read first; the hidden state at its end tells a difficulty probe
which tier will do; the rest of that tier's prompt follows on the same cache, so the choice costs no forward of its own
(DiffAdapt, arXiv 2510.19669, reads the prefill that happens anyway as well).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from .budgets import Budget
from .engines.base import Opened, State
from .markers import Markers
from .prompts import Prompt, Rendered, render

if TYPE_CHECKING:
    from ..probes.choice import TierProbe


def renderings(
    tokenizer: Any,
    prompt: Prompt,
    markers: Markers,
    budgets: Mapping[str, Budget],
    tools: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Rendered]:
    """The prompt as each tier has it."""
    return {tier: render(tokenizer, prompt, budget, markers, tools) for tier, budget in budgets.items()}


def shared_prefix(rendered: Sequence[Rendered]) -> tuple[int, ...]:
    """The ids that all renderings begin with, one fewer than the shortest has at most, so that each goes on."""
    first = rendered[0].ids
    size = min(len(r.ids) for r in rendered) - 1
    for place in range(size):
        if any(r.ids[place] != first[place] for r in rendered):
            return first[:place]
    return first[:size]


class TierChoice:
    """Chooses the tier of one row; implements `engines.base.Opening`.

    settle(tier, reason) makes that tier's row and returns its whole prompt, its watcher and its temperature.
    """

    def __init__(
        self,
        probe: TierProbe,
        prefix: tuple[int, ...],
        longest: int,
        settle: Callable[[str, str], Opened],
    ) -> None:
        self.probe, self.layer = probe, probe.layer
        self.prefix, self.longest = prefix, longest - len(prefix)
        self._settle = settle

    def choose(self, state: State) -> Opened:
        """See `Opening.choose`."""
        opened = self._settle(*self.probe.choose(state))
        return replace(opened, ids=opened.ids[len(self.prefix) :])
