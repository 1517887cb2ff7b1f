"""The charts of a report, and how numbers are written in them."""

from __future__ import annotations

import io
import json
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.image import imread

from tersely.evaluation.report import formatting
from tersely.evaluation.report.page import Chart, draw_charts
from tersely.evaluation.report.schema import BenchmarkResult

from ...support.planted_bench import bare, planted


def load(given: dict[str, Any]) -> BenchmarkResult:
    return BenchmarkResult.model_validate_json(json.dumps(given))


def crowded(seed: int, arms: int = 14) -> BenchmarkResult:
    """A result with many arms, most of them close together, some with awkward names."""
    rng = np.random.default_rng(seed)
    given = planted(rows=[])
    first, *others = given["arms"][:2]
    for i in range(arms - 2):
        accuracy, total = rng.uniform(0.6, 0.9), rng.uniform(80, 300)
        name = ("another-arm-", "_hidden $x^2$ ", "a very long name of an arm, longer than any chart is wide ")[i % 3]
        arm = others[0] | {"name": f"{name}{i}", "accuracy": accuracy, "kind": ("run", "cut")[i % 2]}
        arm |= {"accuracy_ci": [accuracy - 0.03, accuracy + 0.03], "tokens": first["tokens"] | {"total": total}}
        others.append(arm)
    return load(given | {"arms": [first, *others]})


def get_axes(chart: Chart) -> list[Any]:
    return list(chart.figure.axes)


def text_boxes(chart: Chart) -> list[tuple[str, Any]]:
    """The texts of a chart that are shown, with their rectangles in pixels."""
    figure = chart.figure
    FigureCanvasAgg(figure).draw()
    texts = [text for legend in figure.legends for text in legend.get_texts()]
    for axes in get_axes(chart):
        low, high = sorted(axes.get_xlim())
        texts += [
            label for at, label in zip(axes.get_xticks(), axes.get_xticklabels(), strict=True) if low <= at <= high
        ]
        texts += [axes.xaxis.label, axes._left_title]
    return [(text.get_text(), text.get_window_extent()) for text in texts if text.get_text()]


@pytest.mark.parametrize("seed", [0, 1])
def test_texts_overlap_neither_each_other_nor_the_edge(seed: int) -> None:
    result = crowded(seed)
    charts = draw_charts(result)
    assert list(charts) == ["pareto", "levels", "calibration"]
    legend = charts["pareto"].figure.legends[0]
    assert len(legend.get_texts()) == len(result.arms) + 1
    for chart in charts.values():
        boxes = text_boxes(chart)
        for (one, a), (other, b) in combinations(boxes, 2):
            assert not a.padded(-1).overlaps(b.padded(-1)), (one, other)
        for text, box in boxes:
            assert box.x0 >= 0 and box.y0 >= 0, text
            assert box.x1 <= chart.figure.bbox.x1 and box.y1 <= chart.figure.bbox.y1, text


@pytest.mark.parametrize("most", [20, 300, 4_000, 40_000, 3_000_000])
def test_token_labels_fit_at_any_scale(most: int) -> None:
    given = planted(rows=[], budget_curve=[])
    for arm, total in zip(given["arms"], np.geomspace(9, most, len(given["arms"])), strict=True):
        arm["tokens"] |= {"total": total}
    chart = draw_charts(load(given))["pareto"]
    boxes = [box for text, box in text_boxes(chart) if text.replace(",", "").isdigit()]
    assert len(boxes) >= 3
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))


def test_marks_stand_at_the_numbers_of_the_arms() -> None:
    result = load(planted())
    [axes] = get_axes(draw_charts(result)["pareto"])
    marks = {(line.get_xdata()[0], line.get_ydata()[0]) for line in axes.lines if len(line.get_xdata()) == 1}
    assert marks == {(arm.tokens.total, 100 * arm.accuracy) for arm in result.arms}
    curve = next(line for line in axes.lines if len(line.get_xdata()) > 1)
    assert list(curve.get_xdata()) == [point.total for point in result.budget_curve]
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "linear")
    accuracy, thinking = get_axes(draw_charts(result)["levels"])
    assert list(accuracy.lines[1].get_ydata()) == [100 * cell.accuracy for _, cell in result.shared_levels().values()]
    assert list(thinking.lines[0].get_ydata()) == [cell.thinking for cell, _ in result.shared_levels().values()]


def test_charts_without_numbers_are_left_out() -> None:
    given = bare()
    assert list(draw_charts(load(given))) == ["pareto"]
    for arm in given["arms"]:
        arm["tokens"] = dict.fromkeys(arm["tokens"], 0)
    assert draw_charts(load(given)) == {}


def test_svg_is_the_same_every_time() -> None:
    result = load(planted())
    first, second = (draw_charts(result)["calibration"].to_svg() for _ in range(2))
    assert first == second


@pytest.mark.parametrize(
    ("written", "wanted"),
    [
        (formatting.format_number(-0.04), "0.0"),
        (formatting.format_number(-1234.56), "−1,234.6"),
        (formatting.format_difference(0.0004), "0.0"),
        (formatting.format_difference(-0.0123), "−1.2"),
        (formatting.format_difference(0.0123), "+1.2"),
        (formatting.format_tokens(9_999.94), "9,999.9"),
        (formatting.format_tokens(123_456.7), "123,457"),
        (formatting.format_significant(0.000123456), "0.000123"),
        (formatting.format_significant(0), "0"),
        (formatting.format_si(1.68e9), "1.68\u00a0G"),
        (formatting.format_si(999.9e6), "1,000\u00a0M"),
        (formatting.format_p_value(0.0009), "<\u00a00.001"),
        (formatting.format_points(0.01), "1\u00a0point"),
        (formatting.format_points(0.005), "0.5\u00a0points"),
        (formatting.pluralize(1, "crash", "crashes"), "1 crash"),
    ],
)
def test_number_formats(written: str, wanted: str) -> None:
    assert written == wanted


def test_a_dark_style_of_the_user_leaves_charts_light() -> None:
    with rc_context({"figure.facecolor": "black", "axes.facecolor": "black", "savefig.facecolor": "black"}):
        chart = draw_charts(load(planted(rows=[])))["levels"]
        picture = imread(io.BytesIO(chart.to_png("a", "b")))
    assert picture[5, 5, :3].min() == 1
    assert (picture[..., :3].max(axis=2) > 0.5).mean() > 0.9
