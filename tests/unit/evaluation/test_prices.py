"""The built-in price table, a user's table over it, and files that are refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tersely.errors import OptionError
from tersely.evaluation.economics.costs import PriceError, load_prices


def write_prices(folder: Path, data: object) -> Path:
    path = folder / "prices.json"
    path.write_text(data if isinstance(data, str) else json.dumps(data), encoding="utf-8")
    return path


MINE = {"prompt": 1.0, "output": 4.0, "as_of": "2026-11-01"}


def test_built_in_prices_have_a_date_and_a_source() -> None:
    prices = load_prices().models
    assert 5 <= len(prices) <= 15
    for price in prices.values():
        assert 2025 <= price.as_of.year <= 2026
        assert len(price.source) > 10
        assert price.output > price.prompt > (price.cached or 0)


def test_a_cost_is_tokens_times_price() -> None:
    price = load_prices().get("o1")
    assert price.cost(1_000_000, 0) == pytest.approx(15)
    assert price.cost(2000, 500) == pytest.approx(0.03 + 0.03)


def test_own_prices_override_the_built_in_ones(tmp_path: Path) -> None:
    path = write_prices(tmp_path, {"models": {"o1": MINE, "tersely-tiny-small": {**MINE, "output": 0}}})
    prices = load_prices(path)
    assert prices.get("o1").output == 4
    assert prices.get("tersely-tiny-small").output == 0
    assert prices.get("o3-mini") == load_prices().get("o3-mini")
    assert load_prices().get("o1").output == 60


@pytest.mark.parametrize(
    ("data", "named"),
    [
        ({"models": {"m": {**MINE, "output": -2}}}, "models.m.output is -2; accepted: greater than or equal to 0"),
        ({"models": {"m": {**MINE, "outputs": 2}}}, "'models.m.outputs'; did you mean 'output'?"),
        ({"model": {}}, "'model'; did you mean 'models'?"),
        ({"models": {"m": {"prompt": 1, "output": 2}}}, "'models.m.as_of'"),
        ({"models": {"m": {**MINE, "as_of": "soon"}}}, "models.m.as_of is 'soon'"),
        ({"models": {}}, "models is {}"),
        ('{"models": {"m": {"prompt": NaN, "output": 1, "as_of": "2026-01-01"}}}', "models.m.prompt is nan"),
        ("{", "not valid JSON"),
    ],
)
def test_bad_price_file(data: object, named: str, tmp_path: Path) -> None:
    with pytest.raises(PriceError) as caught:
        load_prices(write_prices(tmp_path, data))
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


def test_models_without_a_price_and_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(OptionError) as unknown:
        load_prices().get("o3mini")
    assert unknown.value.code == "unknown_name"
    latin = tmp_path / "latin.json"
    latin.write_bytes(b'{"models\xe9')
    for path in (tmp_path / "none.json", latin):
        with pytest.raises(PriceError) as caught:
            load_prices(path)
        assert caught.value.code == "invalid_prices"
