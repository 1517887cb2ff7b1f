"""The result of a replay: what would have been saved, lost and repaired; its tables, and a page with examples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

from ...controller.text.answers import extract_answer
from ...controller.trace import Usage
from ...io import check_replaceable, render_text
from ...probes.stats import binomial_upper_bound
from ..bench.records import compare_markers, count_markers, format_markers
from ..cli_utils import format_table, is_page_by
from ..stats import ratio_bootstrap
from ..trace_page import GENERATOR, trace_page
from ..trace_record import RunView, SegmentView, TraceRecord
from .run import ReplayedRow, Stop

EXAMPLES = 12  # examples of one set and arm
DELTA = 0.05  # the bound of what is lost holds with confidence 1 - DELTA
_REASONS = 20  # reasons that are listed; a policy may write any number of them
_COLUMNS = ("set", "n", "right", "controlled", "lost (at most)", "repaired", "thinking saved", "trials", "us/token")


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
        **saved.named("thinking_saved"),
        "trial_tokens": sum(one.trial_tokens for one in found) / sum(one.tokens for one in found),
        "control_us_per_token": 1e6 * sum(one.seconds for one in found) / sum(one.used for one in found),
        "stops": stops,
        "stopped_at": median(at) if (at := [one.used / one.tokens for one in found if one.stop]) else None,
        "left_out": dict(left_out),
        "markers": compare_markers(
            (one.right_full, count_markers(one.row.thinking)) for one in found if one.row.gold is not None
        ),
    }


def _share(count: int, total: int) -> float:
    return count / total if total else 0.0


def as_text(
    results: Sequence[Mapping[str, Any]], margin: float | None, skipped: Sequence[int], without_gold: int, pieces: bool
) -> str:
    """The results of all arms as text."""
    return render_text(
        Path(__file__).with_name("replay.txt"),
        results=results,
        totals=[_list_figures(result)[-1] for result in results],
        tables=[_make_table(result) for result in results],
        margin=margin,
        skipped=skipped,
        without_gold=without_gold,
        pieces=pieces,
        percent=_percent,
        format_markers=format_markers,
    )


def _make_table(result: Mapping[str, Any]) -> str:
    rows = []
    baselines = [(name, _list_figures(figures)) for name, figures in result.get("baselines", {}).items()]
    for i, one in enumerate(_list_figures(result)):
        costs = [_percent(one["trial_tokens"]), f"{one['control_us_per_token']:.1f}"]
        rows.append([one["name"], str(one["n"]), *_list_outcomes(one), *costs])
        for name, figures in baselines:
            budget = figures[i].get("budget")
            named = f"  {name}{'' if budget is None else f' {budget}'}"
            rows.append([named, "", *_list_outcomes(figures[i]), "", ""])
    return format_table(_COLUMNS, rows)


def _list_outcomes(one: Mapping[str, Any]) -> list[str]:
    shares = [_percent(one[name]) for name in ("right_full", "right_controlled")]
    lost = f"{_percent(one['lost'])} ({_percent(one['lost_upper'])})"
    low, high = map(_percent, one["thinking_saved_ci"])
    return [*shares, lost, _percent(one["repaired"]), f"{_percent(one['thinking_saved'])} [{low},{high}]"]


def _list_figures(result: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [*result["sets"], *([result["all"]] if "all" in result else [])]


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def check_page(path: Path) -> None:
    """Refuse a place where a page cannot or should not be written; raises WriteError, OptionError."""
    check_replaceable(path, lambda path: is_page_by(path, GENERATOR), "--page")


def replay_page(parts: Sequence[tuple[str, Sequence[ReplayedRow]]]) -> str:
    """The page with examples of each part, which is a set under an arm with its name."""
    records = []
    for name, found in parts:
        stopped = ((one, one.stop) for one in sorted(found, key=_harm) if one.stop is not None)
        records += [_make_record(name, one, stop) for one, stop in islice(stopped, EXAMPLES)]
    return trace_page(records, "replay")


def _harm(one: ReplayedRow) -> int:
    return one.right_controlled - one.right_full


def _make_record(name: str, one: ReplayedRow, stop: Stop) -> TraceRecord:
    """The stopped run next to the recorded one; the id states the verdict, since the viewer compares text."""
    verdict = {-1: "lost", 1: "repaired"}.get(_harm(one), "right" if one.right_full else "wrong")
    full = RunView(
        answer=extract_answer(one.row.answer),
        tier="recorded",
        finish_reason="stop",
        usage=Usage(thinking=one.tokens),
        segments=_segments(one.row.thinking, one.row.answer),
    )
    return TraceRecord(
        version=1,
        id=f"{name}: {one.row.id}, {verdict}" + ("" if one.row.gold is None else f" ({one.row.gold} is right)"),
        question=one.row.question,
        answer=stop.answer,
        tier="recorded",
        finish_reason=f"stopped by {stop.decision.policy}",
        usage=Usage(thinking=stop.tokens),
        segments=_segments(stop.thinking, stop.answer),
        decisions=(replace(stop.decision, text="", acted=True),),
        uncontrolled=full,
    )


def _segments(thinking: str, answer: str) -> tuple[SegmentView, ...]:
    parts = ((thinking, True), (answer, False))
    return tuple(SegmentView(kind="kept", text=text, thinking=inside) for text, inside in parts if text)
