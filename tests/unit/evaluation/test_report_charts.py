"""The charts of a report and the numbers on them."""

from __future__ import annotations

import json
from itertools import combinations

import numpy as np
import pytest

from tersely.evaluation.report import charts
from tersely.evaluation.report import formatting as words
from tersely.evaluation.report.axes import Scale
from tersely.evaluation.report.labels import text_box
from tersely.evaluation.report.result import Result
from tersely.evaluation.report.scene import Dot, Scene, SceneText

from ...support.planted_bench import planted


def crowded(seed: int, arms: int = 10) -> Result:
    """A result with many arms, most of them close together."""
    rng = np.random.default_rng(seed)
    given = planted(rows=[])
    first, *others = given["arms"][:2]
    for i in range(arms - 2):
        accuracy, total = rng.uniform(0.6, 0.9), rng.uniform(80, 300)
        arm = others[0] | {"name": f"another-arm-{i}", "accuracy": accuracy, "kind": ("run", "cut")[i % 2]}
        arm |= {"accuracy_ci": [accuracy - 0.03, accuracy + 0.03], "tokens": first["tokens"] | {"total": total}}
        others.append(arm)
    return Result.model_validate_json(json.dumps(given | {"arms": [first, *others]}))


def drawn(found: Scene | None) -> Scene:
    assert found is not None
    return found


@pytest.mark.parametrize("seed", range(4))
def test_names_of_arms_cover_neither_each_other_nor_a_mark(seed: int) -> None:
    given = crowded(seed)
    scene = drawn(charts.pareto(given, charts.WIDE))
    names = [arm.name for arm in given.arms]
    boxes = [text_box(item, scene.letter) for item in scene.items if isinstance(item, SceneText) and item.text in names]
    assert len(boxes) == len(names)
    assert all(one.overlap(other) == 0 for one, other in combinations(boxes, 2))
    for dot in (item for item in scene.items if isinstance(item, Dot) and item.role != "curve"):
        for box in boxes:
            assert not box.holds(dot.x, dot.y)
    assert all(box.left >= 0 and box.right <= scene.width for box in boxes)


def test_ticks_are_round_and_few() -> None:
    assert Scale(8, 400, 0, 1, log=True).ticks(6) == [10, 20, 50, 100, 200]
    assert Scale(8, 400_000, 0, 1, log=True).ticks(4) == [10, 1000, 100_000]
    assert Scale(210, 280, 0, 1, log=True).ticks(8) == [210, 220, 230, 240, 250, 260, 270, 280]
    assert Scale(0, 1, 0, 1).ticks(5) == [0, 0.2, 0.4, 0.6, 0.8, 1]
    assert Scale(100, 10_000, 0, 10, log=True)(1_000) == pytest.approx(5)


@pytest.mark.parametrize(
    ("written", "wanted"),
    [
        (words.format_number(-0.04), "0.0"),
        (words.format_number(-1234.56), "−1,234.6"),
        (words.signed(0.0004), "0.0"),
        (words.signed(-0.0123), "−1.2"),
        (words.signed(0.0123), "+1.2"),
        (words.tokens(9_999.94), "9,999.9"),
        (words.tokens(123_456.7), "123,457"),
        (words.significant(0.000123456), "0.000123"),
        (words.significant(0), "0"),
        (words.prefixed(1.68e9), "1.68\u00a0G"),
        (words.prefixed(999.9e6), "1,000\u00a0M"),
        (words.p_value(0.0009), "<\u00a00.001"),
        (words.points(0.01), "1\u00a0point"),
        (words.points(0.005), "0.5\u00a0points"),
        (words.pluralize(1, "crash", "crashes"), "1 crash"),
    ],
)
def test_numbers_are_written_as_one_reads_them(written: str, wanted: str) -> None:
    assert written == wanted
