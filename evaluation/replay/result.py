"""The figures of a replay: what would have been saved, lost and repaired, per set and in all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from ...probes.stats import binomial_upper_bound
from ..stats import ratio_bootstrap
from .run import ReplayedRow

DELTA = 0.05
"""The bound of what is lost holds with confidence 1 - DELTA."""
_REASONS = 20
"""Reasons that are listed; a policy may write any number of them."""


def summarize(name: str, found: Sequence[ReplayedRow], left_out: Mapping[str, int]) -> dict[str, Any]:
    """The figures of one set, most of them shares of its rows.

    `lost` is the share of the rows right in full that control makes wrong, `repaired` the reverse; `thinking_saved` is
    of the tokens, `trial_tokens` are those of trials over all thinking tokens.
    """
    right = [one for one in found if one.right_full]
    lost = sum(not one.right_controlled for one in right)
    repaired = sum(one.right_controlled for one in found if not one.right_full)
    saved = ratio_bootstrap([one.used for one in found], [one.tokens for one in found])
    reasons = Counter(one.stop.reason for one in found if one.stop is not None).most_common()
    stops = dict(reasons[:_REASONS])
    if others := sum(count for _, count in reasons[_REASONS:]):
        stops["other reasons"] = others
    return {
        "name": name,
        "n": len(found),
        "right_full": len(right) / len(found),
        "right_controlled": sum(one.right_controlled for one in found) / len(found),
        "lost": _share(lost, len(right)),
        "lost_upper": binomial_upper_bound(lost, len(right), DELTA),
        "repaired": _share(repaired, len(found) - len(right)),
        "thinking_saved": saved.estimate,
        "thinking_saved_ci": [saved.low, saved.high],
        "trial_tokens": sum(one.trial_tokens for one in found) / sum(one.tokens for one in found),
        "control_us_per_token": 1e6 * sum(one.seconds for one in found) / sum(one.used for one in found),
        "stops": stops,
        "stopped_at": median(at) if (at := [one.used / one.tokens for one in found if one.stop]) else None,
        "left_out": dict(left_out),
    }


def _share(count: int, total: int) -> float:
    return count / total if total else 0.0
