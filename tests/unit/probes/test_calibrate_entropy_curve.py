"""The entropy curve: when it counts as U-shaped."""

from __future__ import annotations

from typing import Any

import numpy as np

from tersely.probes.calibrate.difficulty import compute_entropy_curve


def make_curve(means: list[float], n: int = 60, seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    level = np.repeat(np.arange(len(means)), n)
    entropy = rng.normal(np.asarray(means)[level], 0.2)
    return compute_entropy_curve(
        level.astype(float), entropy, (rng.uniform(size=len(level)) > level / len(means)).astype(float)
    )


def test_a_u_shaped_curve_is_recognised() -> None:
    u = make_curve([0.8, 0.5, 0.3, 0.5, 0.9])
    assert u["u-shaped"]
    assert [level["n"] for level in u["levels"]] == [60] * 5
    means = [0.8, 0.5, 0.3, 0.5, 0.9]
    assert all(level["low"] < mean < level["high"] for level, mean in zip(u["levels"], means, strict=True))
    assert u["levels"][0]["accuracy"] > u["levels"][4]["accuracy"]
    assert not make_curve([0.3, 0.4, 0.5, 0.6])["u-shaped"]
    assert not make_curve([0.6, 0.5, 0.4, 0.3])["u-shaped"]
    assert not make_curve([0.8, 0.3])["u-shaped"]
    assert not make_curve([0.8, 0.3, 0.9], n=1)["u-shaped"]


def test_flat_entropy_is_rarely_taken_for_a_u() -> None:
    found = [make_curve([0.5] * 8, n=20, seed=seed)["u-shaped"] for seed in range(200)]
    assert np.mean(found) < 0.05
