"""What probes learn and what is done with their chances: labels, prices, beliefs, and the curve of entropy."""

from __future__ import annotations

import numpy as np
import pytest

from tersely.errors import OptionError
from tersely.probes import readiness
from tersely.probes.calibrate.entropy_curve import EntropyCurve, entropy_curve
from tersely.probes.tier_selector import price_for, tier_labels
from tersely.probes.calibrate.difficulty import self_labels
from tersely.probes.tier_selector import TierTable


def test_self_labels_follow_the_paper() -> None:
    accuracy, entropy = [1.0, 1.0, 0.8, 0.5, 0.2, 0.1], [0.1, 0.5, 0.3, 0.1, 0.1, 0.1]
    assert list(self_labels(accuracy, entropy)) == ["normal", "easy", "normal", "easy", "easy", "hard"]
    assert list(self_labels(accuracy, entropy, beta=0.2))[:3] == ["normal", "easy", "easy"]
    assert list(self_labels([0.3, 0.1], [0.1, 0.1])) == ["easy", "hard"]
    with pytest.raises(OptionError, match=r"gamma is 0\.9"):
        self_labels(accuracy, entropy, gamma=0.9)
    with pytest.raises(OptionError, match="entropy has shape"):
        self_labels(accuracy, entropy[1:])


def test_a_tier_label_is_the_cheapest_that_will_do() -> None:
    accuracy = [[1.0, 1.0, 1.0], [0.5, 0.9, 0.92], [0.0, 0.2, 0.9], [0.0, 0.0, 0.0], [0.6, 0.6, 0.6]]
    spent = np.tile([100, 300, 200], (5, 1))
    spent[4] = [500, 300, 200]
    assert list(tier_labels(accuracy, spent)) == ["easy", "normal", "hard", "easy", "normal"]
    assert list(tier_labels(accuracy, [100, 300, 200], tolerance=0)) == ["easy", "hard", "hard", "easy", "easy"]
    with pytest.raises(OptionError, match=r"accepted: \(questions, 3\)"):
        tier_labels([[1.0, 0.0]], [1, 2])


def planted_tiers() -> tuple[TierTable, np.ndarray, np.ndarray]:
    """Two classes, of which the second needs the dearer tier, with chances that tell them apart."""
    label = np.repeat([0, 1], 50)
    right = np.stack([np.where(label == 0, 1.0, 0.2), np.ones(100)], axis=1)
    table = TierTable.of(("easy", "normal"), 2, label, right, np.tile([100.0, 400.0], (100, 1)))
    sure = np.linspace(0.55, 0.99, 50)
    proba = np.concatenate([np.stack([sure, 1 - sure], axis=1), np.stack([1 - sure, sure], axis=1)])
    return table, proba, right


def test_the_price_is_the_largest_that_keeps_the_accuracy() -> None:
    table, proba, right = planted_tiers()
    rows = np.arange(100)
    price = price_for(table, proba, right, margin=0.0)
    assert price is not None
    chosen = table.choose(proba, price)
    assert list(chosen) == [0] * 50 + [1] * 50
    loose = price_for(table, proba, right, margin=0.05)
    assert loose is not None
    assert loose > price
    assert 0.95 <= right[rows, table.choose(proba, loose)].mean() < 1
    assert right[rows, table.choose(proba, loose * 1.2)].mean() < 0.95
    anything = price_for(table, proba, right, margin=1.0)
    assert anything is not None
    assert set(table.choose(proba, anything)) == {0}


def test_a_dearer_price_that_does_well_again_is_not_trusted() -> None:
    accuracy, tokens = np.array([[0.6, 0.7], [0.5, 0.9]]), np.array([[100.0, 400.0]] * 2)
    table, proba = TierTable(("easy", "normal"), accuracy, tokens), np.array([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]])
    # Rows turn to the easy tier one after the other; the first to turn loses, the two others win by it.
    right = np.array([[0.0, 1.0], [1.0, 0.0], [1.0, 0.0]])
    price = price_for(table, proba, right, margin=0.1)
    assert price is not None
    assert price < 0.1 / 300
    assert list(table.choose(proba, price)) == [1, 1, 1]


def test_no_price_may_keep_the_accuracy() -> None:
    table, proba, right = planted_tiers()
    misled = TierTable(table.tiers, table.accuracy[:, ::-1], table.tokens)
    assert price_for(misled, proba, right, margin=0.1) is None
    with pytest.raises(OptionError, match="unknown tier 'hard'"):
        price_for(table, proba, right, margin=0.1, base="hard")
    with pytest.raises(OptionError, match=r"accepted: \(n, 2\) and \(n, 2\)"):
        price_for(table, proba[1:], right, margin=0.1)


def curve_of(means: list[float], n: int = 60, bins: int | None = None, seed: int = 0) -> EntropyCurve:
    rng = np.random.default_rng(seed)
    level = np.repeat(np.arange(len(means)), n)
    entropy = rng.normal(np.asarray(means)[level], 0.2)
    return entropy_curve(level, entropy, rng.uniform(size=len(level)) > level / len(means), bins=bins)


def test_a_u_curve_is_told_from_others() -> None:
    u = curve_of([0.8, 0.5, 0.3, 0.5, 0.9])
    assert u.u_shaped
    assert u.lowest == 2
    assert [level.n for level in u.levels] == [60] * 5
    assert all(level.low < mean < level.high for level, mean in zip(u.levels, [0.8, 0.5, 0.3, 0.5, 0.9], strict=True))
    assert u.levels[0].accuracy > u.levels[4].accuracy
    assert not curve_of([0.3, 0.4, 0.5, 0.6]).u_shaped
    assert not curve_of([0.6, 0.5, 0.4, 0.3]).u_shaped
    assert not curve_of([0.8, 0.3]).u_shaped
    assert not curve_of([0.8, 0.3, 0.9], n=1).u_shaped
    assert len(curve_of([0.8, 0.5, 0.3, 0.5, 0.7, 0.9], bins=3).levels) == 3


def test_flat_entropy_is_seldom_taken_for_a_u() -> None:
    found = [curve_of([0.5] * 8, n=20, seed=seed).u_shaped for seed in range(200)]
    assert np.mean(found) < 0.05


def test_readiness_has_three_outcomes() -> None:
    assert list(readiness.labels([1, 1, 0, 0], [1, 0, 1, 0])) == ["ready", "ready", "hopeful", "hopeless"]
    assert list(readiness.labels_by_agreement([True, False])) == ["ready", "hopeful"]
    chances = np.array([[0.7, 0.2, 0.1]], np.float32)
    assert readiness.score(chances) == pytest.approx(0.8)
    assert readiness.unrecoverable(chances) == pytest.approx(0.1)
    with pytest.raises(OptionError, match=r"outcomes hold 0\.5"):
        readiness.labels([0.5], [1])
    with pytest.raises(OptionError, match="1 answers now and 2 in the end"):
        readiness.labels([1], [1, 0])
