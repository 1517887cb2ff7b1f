"""DiffAdapt's entropy curve (arXiv 2510.19669): mean token entropy by difficulty, computed and drawn."""

from __future__ import annotations

import math
from collections.abc import Mapping
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import CapabilityError, OptionError
from ...io import check_writable, write

Floats = NDArray[np.float64]
FORMATS = ("png", "svg")
LEVEL = 0.95


def compute_entropy_curve(difficulty: Floats, entropy: Floats, accuracy: Floats) -> dict[str, Any]:
    """Mean token entropy in nats of questions [n] at each value of their difficulty, with its t interval; JSON form.

    It is U-shaped if both ends are above one inner level, by Welch's one-sided t tests with Bonferroni's correction.
    """
    parts = [difficulty == value for value in np.unique(difficulty)]
    levels = [_summarize(difficulty[part], entropy[part], accuracy[part]) for part in parts]
    u_shaped = any(
        max(_p_value_below(entropy[part], entropy[parts[end]]) for end in (0, -1)) <= (1 - LEVEL) / (len(parts) - 2)
        for part in parts[1:-1]
    )
    return {"levels": levels, "u-shaped": u_shaped}


def _summarize(difficulty: Floats, entropy: Floats, accuracy: Floats) -> dict[str, float]:
    from scipy import stats

    n, mean = len(entropy), float(entropy.mean())
    half = float(stats.t.ppf((1 + LEVEL) / 2, n - 1) * entropy.std(ddof=1) / math.sqrt(n)) if n > 1 else math.inf
    return {
        "difficulty": float(difficulty.mean()),
        "entropy": mean,
        "low": mean - half,
        "high": mean + half,
        "accuracy": float(accuracy.mean()),
        "n": n,
    }


def _p_value_below(inner: Floats, end: Floats) -> float:
    """p-value of the test that the mean of `inner` is below that of `end`; 1 if there are too few values."""
    from scipy import stats

    if min(len(inner), len(end)) < 2:
        return 1.0
    if not inner.std() and not end.std():
        return float(inner.mean() >= end.mean())
    return float(stats.ttest_ind(inner, end, equal_var=False, alternative="less").pvalue)


def check_picture(path: Path) -> None:
    """Refuse a picture that cannot be drawn; raises OptionError, CapabilityError or WriteError."""
    if path.suffix.lstrip(".").lower() not in FORMATS:
        raise OptionError(f"--curve {path} ends in {path.suffix!r}; accepted: .png or .svg", code="unknown_format")
    if find_spec("matplotlib") is None:
        raise CapabilityError("--curve needs matplotlib, which is not installed; pip install 'tersely[bench]'")
    check_writable(path, "--curve")


def draw_entropy_curve(report: Mapping[str, Any], path: Path) -> None:
    """Draw the entropy curve of a calibration report; raises OptionError if there is none."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    difficulty = report["difficulty"]
    if "entropy curve" not in difficulty:
        raise OptionError(f"the report has no entropy curve: {difficulty['skipped']}; leave out --curve")
    levels = {
        name: np.array([level[name] for level in difficulty["entropy curve"]["levels"]], np.float64)
        for name in ("difficulty", "entropy", "low", "high", "accuracy")
    }
    figure = Figure(figsize=(6, 3.5), layout="constrained")
    FigureCanvasAgg(figure)
    left = figure.subplots()
    errors = [levels["entropy"] - levels["low"], levels["high"] - levels["entropy"]]
    left.errorbar(levels["difficulty"], levels["entropy"], yerr=errors, marker="o", capsize=3, label="entropy")
    left.set_xlabel("difficulty")
    left.set_ylabel("mean token entropy, nats (95 %)")
    left.set_ylim(bottom=0)
    right = left.twinx()
    right.plot(levels["difficulty"], levels["accuracy"], color="tab:gray", linestyle="--", marker="s", label="accuracy")
    right.set_ylabel("accuracy")
    right.set_ylim(0, 1)
    buffer = BytesIO()
    figure.savefig(buffer, format=path.suffix.lstrip(".").lower())
    write(path, buffer.getvalue())
