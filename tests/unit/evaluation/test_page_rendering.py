"""The report's and the trace viewer's pages in a real browser."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tersely.controller.trace import Decision, Usage
from tersely.evaluation.report.page import report_page
from tersely.evaluation.report.schema import BenchmarkResult
from tersely.evaluation.trace_page import trace_page
from tersely.evaluation.trace_record import RunView, SegmentView, TokenView, TraceRecord

from ...support.browser import load_page, measure_layout, needs_browser
from ...support.planted_bench import HOSTILE, bare, planted

pytestmark = [needs_browser, pytest.mark.slow]

PAGES = ("bare report", "several reports", "traces")
DECISIONS = (
    Decision("trim", "trim", "nothing new was said", 4),
    Decision("hint", "inject", "hint 1, block of 128 tokens", 8, "forced0 forced1"),
    Decision("budget", "close", "budget of 16 tokens is used up", 12, "End.", acted=False),
)


def build_run(kinds: str, size: int = 4, **more: Any) -> dict[str, Any]:
    """Return the fields of a run with segments of these kinds, each of some words, and an answer."""
    segments, tokens = [], []
    for kind in kinds.split():
        words = [f"{kind}{i} " for i in range(size)]
        segments.append(SegmentView(kind=kind, text="".join(words), thinking=True))  # type: ignore[arg-type]
        tokens += [] if kind == "trimmed" else words
    segments.append(SegmentView(kind="kept", text="It is 7.", thinking=False))
    tokens.append("It is 7.")
    return {
        "answer": "7",
        "tier": "easy",
        "finish_reason": "stop",
        "usage": Usage(thinking=len(tokens) - 1, answer=1, injected=size),
        "segments": tuple(segments),
        "tokens": tuple(TokenView(text=text) for text in tokens),
        **more,
    }


def write_report(path: Path, *results: dict[str, Any]) -> Path:
    loaded = [
        (f"{i}.json", BenchmarkResult.model_validate_json(json.dumps(result))) for i, result in enumerate(results)
    ]
    path.write_text(report_page(loaded, "0.1.0"), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    hostile = planted(model=HOSTILE, notes=[HOSTILE * 20], command=["x" * 300, HOSTILE], tasks=[HOSTILE])
    controlled = build_run("kept trimmed kept forced delegated", decisions=DECISIONS, gold="7")
    uncontrolled = RunView(**build_run("kept kept kept kept kept"))
    first = TraceRecord(version=1, id="first", question="2 + 5?", uncontrolled=uncontrolled, **controlled)
    second = TraceRecord(version=1, id="second", question=f"{HOSTILE} 3 + 3?", **build_run("kept", 2_500))
    traces = folder / "traces.html"
    traces.write_text(trace_page([first, second], "traces.jsonl"), encoding="utf-8")
    return {
        "bare report": write_report(folder / "bare.html", bare()),
        "several reports": write_report(folder / "several.html", planted(), hostile),
        "traces": traces,
    }


@pytest.mark.parametrize("name", PAGES)
def test_console_stays_empty(pages: dict[str, Path], name: str) -> None:
    document, console = load_page(pages[name])
    assert console == []
    assert document.rstrip().endswith("</html>")


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (500, True)])
@pytest.mark.parametrize("name", PAGES)
def test_text_neither_overlaps_nor_is_clipped(pages: dict[str, Path], name: str, width: int, dark: bool) -> None:
    layout = measure_layout(pages[name], width, dark)
    assert layout["lines"] > 40
    assert layout["dark"] == dark
    assert (layout["overlaps"], layout["clipped"], layout["faint"]) == ([], [], [])
    assert (layout["wide"], layout["broken"]) == (False, 0)


def test_one_record_is_shown_at_a_time(pages: dict[str, Path]) -> None:
    document, _ = load_page(pages["traces"])
    assert "2 of 2 records" in document
    assert 'aria-current="true"' in document
    assert document.count("<article") == 2
    assert document.split("<article")[2].split(">")[0].endswith('hidden=""')
