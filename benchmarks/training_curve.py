"""Plot tokens, accuracy and the probability of not thinking over the steps of a run, from its `curve.jsonl`, as SVG.

All values are those of the policy itself (`policy/...`, see docs/TRAINING.md): single steps as dots, and running means.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

PANELS = (
    ("tokens per completion", ("policy/tokens",), "{x:.0f}"),
    ("accuracy", ("policy/accuracy",), "{x:.0%}"),
    ("P(no thinking), levels 1 and 6", ("level/1/no_think", "level/6/no_think"), "{x:.0%}"),
)
COLOURS = ("#2563a8", "#b4531f")
WINDOW = 10
"""Steps of a running mean."""


def running_mean(values: Sequence[float]) -> list[float]:
    """The mean of the last `WINDOW` values at each step."""
    return [fmean(values[max(0, i - WINDOW + 1) : i + 1]) for i in range(len(values))]


def plot(logs: Sequence[dict[str, float]], out: Path) -> None:
    """Write the plot of these logs."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6), layout="constrained")
    for axes, (title, keys, form) in zip(figure.subplots(len(PANELS), sharex=True), PANELS, strict=True):
        axes.set_title(title, loc="left", fontsize="medium")
        for key, colour in zip(keys, COLOURS, strict=False):
            steps, values = [log["step"] for log in logs if key in log], [log[key] for log in logs if key in log]
            axes.plot(steps, values, ".", color=colour, alpha=0.35, markersize=3)
            axes.plot(steps, running_mean(values), color=colour)
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(form)
        axes.grid(axis="y", color="#ddd")
    with mpl.rc_context({"svg.hashsalt": "tersely"}):
        figure.savefig(out, format="svg", metadata={"Date": None})


def main(argv: Sequence[str] | None = None) -> None:
    """Read a curve and write its plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("curve", type=Path, help="curve.jsonl of a run")
    parser.add_argument("out", type=Path, help="the SVG to write")
    options = parser.parse_args(argv)
    logs = [log for log in map(json.loads, options.curve.read_text("utf-8").splitlines()) if "policy/tokens" in log]
    if not logs:
        raise SystemExit(f"{options.curve} has no steps of reinforcement learning; give the curve of a GRPO method")
    plot(logs, options.out)


if __name__ == "__main__":
    main()
