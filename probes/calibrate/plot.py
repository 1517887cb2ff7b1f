"""DiffAdapt's picture: entropy over difficulty, with accuracy beside it."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any

from ...errors import CapabilityError, OptionError
from ...io import check_writable, write

KINDS = ("png", "svg")


def check_curve(path: Path) -> None:
    """Refuse, before any work is done, a picture that cannot be drawn; raises OptionError, CapabilityError."""
    if path.suffix.lstrip(".").lower() not in KINDS:
        raise OptionError(f"--curve {path} ends in {path.suffix!r}; accepted: .png or .svg")
    if find_spec("matplotlib") is None:
        raise CapabilityError("matplotlib draws the curve and is not installed; pip install 'tersely[bench]'")
    check_writable(path, "--curve")


def draw_curve(report: Mapping[str, Any], path: Path) -> None:
    """Draw the entropy curve of a calibration's report; raises OptionError if difficulty was not learnt."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    found = report["difficulty"]
    if "entropy curve" not in found:
        raise OptionError(f"there is no entropy curve: {found['skipped']}; leave --curve out")
    levels = found["entropy curve"]["levels"]
    x = [level["difficulty"] for level in levels]
    figure = Figure(figsize=(6, 3.5), layout="constrained")
    FigureCanvasAgg(figure)
    left = figure.subplots()
    low = [level["entropy"] - level["low"] for level in levels]
    high = [level["high"] - level["entropy"] for level in levels]
    left.errorbar(x, [level["entropy"] for level in levels], yerr=[low, high], marker="o", capsize=3, label="entropy")
    left.set_xlabel("difficulty")
    left.set_ylabel("mean token entropy, nats (95 %)")
    left.set_ylim(bottom=0)
    right = left.twinx()
    right.plot(
        x, [level["accuracy"] for level in levels], color="tab:gray", linestyle="--", marker="s", label="accuracy"
    )
    right.set_ylabel("accuracy")
    right.set_ylim(0, 1)
    drawn = BytesIO()
    figure.savefig(drawn, format=path.suffix.lstrip(".").lower())
    write(path, drawn.getvalue())
