"""The price table, a user's own over it, and what a bad one is told."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tersely.errors import OptionError
from tersely.evaluation.economics.prices import PriceError, load_prices


def written(folder: Path, data: object) -> Path:
    path = folder / "prices.json"
    path.write_text(data if isinstance(data, str) else json.dumps(data), encoding="utf-8")
    return path


MINE = {"prompt": 1.0, "output": 4.0, "as_of": "2026-11-01"}


def test_every_price_shipped_says_when_and_where_it_was_read() -> None:
    prices = load_prices().models
    assert 5 <= len(prices) <= 15
    for price in prices.values():
        assert 2025 <= price.as_of.year <= 2026
        assert len(price.source) > 10
        assert price.output > price.prompt > (price.cached or 0)


def test_a_cost_is_tokens_times_price() -> None:
    price = load_prices().of("o1")
    assert price.cost(1_000_000, 0) == pytest.approx(15)
    assert price.cost(2000, 500) == pytest.approx(0.03 + 0.03)
    assert price.cost(2000, 500, cached=1000) == pytest.approx(0.015 + 0.0075 + 0.03)
    assert price.cost(np.array([2000.0, 0.0]), np.array([0.0, 500.0])).tolist() == pytest.approx([0.03, 0.03])


def test_own_prices_lie_over_those_shipped(tmp_path: Path) -> None:
    path = written(tmp_path, {"models": {"o1": MINE, "tersely-tiny-small": {**MINE, "output": 0}}})
    prices = load_prices(path)
    assert prices.of("o1").output == 4
    assert prices.of("o1").cost(1e6, 0, cached=1e6) == 1, "no price of cached tokens: they cost as much as others"
    assert prices.of("tersely-tiny-small").output == 0
    assert prices.of("o3-mini") == load_prices().of("o3-mini")
    assert load_prices().of("o1").output == 60


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (
            {"models": {"m": {**MINE, "output": -2}}},
            "models.m.output is -2; accepted: greater than or equal to 0",
        ),
        ({"models": {"m": {**MINE, "outputs": 2}}}, "unknown field 'models.m.outputs'; did you mean 'output'?"),
        ({"model": {}}, "unknown field 'model'; did you mean 'models'?"),
        ({"models": {"m": {"prompt": 1, "output": 2}}}, "field 'models.m.as_of' is missing"),
        ({"models": {"m": {**MINE, "as_of": "soon"}}}, "models.m.as_of is 'soon'; accepted: a valid date"),
        ({"models": {}}, "models is {}; accepted: at least 1 item"),
        (
            '{"models": {"m": {"prompt": NaN, "output": 1, "as_of": "2026-01-01"}}}',
            "models.m.prompt is nan; accepted: a finite number",
        ),
        ("{", "not JSON (EOF while parsing"),
    ],
)
def test_a_bad_price_file_is_refused_in_one_line(data: object, said: str, tmp_path: Path) -> None:
    with pytest.raises(PriceError) as caught:
        load_prices(written(tmp_path, data))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_models_and_files_without_prices(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="did you mean 'o3-mini'"):
        load_prices().of("o3mini")
    with pytest.raises(PriceError, match="there is no file"):
        load_prices(tmp_path / "none.json")
    latin = tmp_path / "latin.json"
    latin.write_bytes(b'{"models\xe9')
    with pytest.raises(PriceError, match="not UTF-8 text"):
        load_prices(latin)
