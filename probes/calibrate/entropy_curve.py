"""DiffAdapt's entropy curve (arXiv 2510.19669): mean token entropy by difficulty, computed and drawn."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ...errors import CapabilityError, OptionError
from ...io import check_writable, write

Floats = NDArray[np.float64]
FORMATS = ("png", "svg")


@dataclass(frozen=True, slots=True)
class DifficultyLevel:
    """Questions of one difficulty: mean entropy in nats with its t interval, accuracy, and how many there are."""

    difficulty: float
    entropy: float
    low: float
    high: float
    accuracy: float
    n: int


@dataclass(frozen=True, slots=True)
class EntropyCurve:
    """Entropy by difficulty, U-shaped if both ends are significantly above some level between them."""

    levels: tuple[DifficultyLevel, ...]
    u_shaped: bool

    def as_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {"levels": [asdict(level) for level in self.levels], "u-shaped": self.u_shaped}


def compute_entropy_curve(
    difficulty: ArrayLike, entropy: ArrayLike, accuracy: ArrayLike, level: float = 0.95
) -> EntropyCurve:
    """Compute the mean token entropy of questions [n] at each value of their difficulty.

    It is U-shaped if both ends are above one inner level, by Welch's one-sided t tests with Bonferroni's correction for
    the number of inner levels.
    """
    difficulties, entropies, accuracies = check_columns(difficulty=difficulty, entropy=entropy, accuracy=accuracy)
    parts = [difficulties == value for value in np.unique(difficulties)]
    levels = tuple(_summarize(difficulties[part], entropies[part], accuracies[part], level) for part in parts)
    u_shaped = any(
        max(_p_value_below(entropies[part], entropies[parts[end]]) for end in (0, -1)) <= (1 - level) / (len(parts) - 2)
        for part in parts[1:-1]
    )
    return EntropyCurve(levels, u_shaped)


def _summarize(difficulty: Floats, entropy: Floats, accuracy: Floats, level: float) -> DifficultyLevel:
    from scipy import stats

    n, mean = len(entropy), float(entropy.mean())
    half = float(stats.t.ppf((1 + level) / 2, n - 1) * entropy.std(ddof=1) / math.sqrt(n)) if n > 1 else math.inf
    return DifficultyLevel(float(difficulty.mean()), mean, mean - half, mean + half, float(accuracy.mean()), n)


def _p_value_below(inner: Floats, end: Floats) -> float:
    """p-value of the test that the mean of `inner` is below that of `end`; 1 if there are too few values."""
    from scipy import stats

    if min(len(inner), len(end)) < 2:
        return 1.0
    if not inner.std() and not end.std():
        return float(inner.mean() >= end.mean())
    moments = [value for part in (inner, end) for value in (part.mean(), part.std(ddof=1), len(part))]
    return float(stats.ttest_ind_from_stats(*moments, equal_var=False, alternative="less").pvalue)


def check_columns(**columns: ArrayLike) -> list[Floats]:
    """Convert columns [n] to arrays; raises OptionError unless they are equally long, finite and not empty."""
    arrays = {name: np.asarray(values, np.float64) for name, values in columns.items()}
    first = next(iter(arrays.values()))
    for name, array in arrays.items():
        if array.ndim != 1 or array.shape != first.shape or not len(array) or not np.isfinite(array).all():
            raise OptionError(f"{name} has shape {array.shape}; accepted: one finite number a question, at least one")
    return list(arrays.values())


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
