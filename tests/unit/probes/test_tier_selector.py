"""Choosing tiers: labels, tables and the price of tokens."""

from __future__ import annotations

import numpy as np

from tersely.probes.tier_selector import TierTable, find_price, label_tiers


def test_a_tier_label_is_the_cheapest_sufficient_tier() -> None:
    accuracy = [[1.0, 1.0, 1.0], [0.5, 0.9, 0.92], [0.0, 0.2, 0.9], [0.0, 0.0, 0.0], [0.6, 0.6, 0.6]]
    spent = np.tile([100, 300, 200], (5, 1))
    spent[4] = [500, 300, 200]
    assert list(label_tiers(accuracy, spent)) == ["easy", "normal", "hard", "easy", "normal"]
    assert list(label_tiers(accuracy, [100, 300, 200], tolerance=0)) == ["easy", "hard", "hard", "easy", "easy"]


def planted_tiers() -> tuple[TierTable, np.ndarray, np.ndarray]:
    """Two classes, of which the second needs the more expensive tier, with probabilities that separate them."""
    label = np.repeat([0, 1], 50)
    right = np.stack([np.where(label == 0, 1.0, 0.2), np.ones(100)], axis=1)
    table = TierTable.estimate(("easy", "normal"), 2, label, right, np.tile([100.0, 400.0], (100, 1)))
    sure = np.linspace(0.55, 0.99, 50)
    proba = np.concatenate([np.stack([sure, 1 - sure], axis=1), np.stack([1 - sure, sure], axis=1)])
    return table, proba, right


def test_the_price_is_the_largest_that_keeps_the_accuracy() -> None:
    table, proba, right = planted_tiers()
    rows = np.arange(100)
    price = find_price(table, proba, right, margin=0.0)
    assert price is not None
    chosen = table.choose(proba, price)
    assert list(chosen) == [0] * 50 + [1] * 50
    loose = find_price(table, proba, right, margin=0.05)
    assert loose is not None
    assert loose > price
    assert 0.95 <= right[rows, table.choose(proba, loose)].mean() < 1
    assert right[rows, table.choose(proba, loose * 1.2)].mean() < 0.95
    anything = find_price(table, proba, right, margin=1.0)
    assert anything is not None
    assert set(table.choose(proba, anything)) == {0}


def test_a_higher_price_that_does_well_again_is_not_trusted() -> None:
    accuracy, tokens = np.array([[0.6, 0.7], [0.5, 0.9]]), np.array([[100.0, 400.0]] * 2)
    table, proba = TierTable(("easy", "normal"), accuracy, tokens), np.array([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]])
    # Rows switch to the easy tier one after the other; the first to switch loses, the two others win.
    right = np.array([[0.0, 1.0], [1.0, 0.0], [1.0, 0.0]])
    price = find_price(table, proba, right, margin=0.1)
    assert price is not None
    assert price < 0.1 / 300
    assert list(table.choose(proba, price)) == [1, 1, 1]


def test_there_may_be_no_price_that_keeps_the_accuracy() -> None:
    table, proba, right = planted_tiers()
    misled = TierTable(table.tiers, table.accuracy[:, ::-1], table.tokens)
    assert find_price(misled, proba, right, margin=0.1) is None
