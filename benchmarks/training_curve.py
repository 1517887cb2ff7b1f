"""Picture of a training: tokens, accuracy and the chance of not thinking over steps, from its `curve.jsonl`, as SVG.

All are what the policy itself would do (`policy/...`, see docs/TRAINING.md), dots of single steps and means of ten.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean

PANELS = (
    ("tokens a completion", ("policy/tokens",), "{:.0f}"),
    ("right", ("policy/accuracy",), "{:.0%}"),
    ("chance of not thinking, levels 1 and 6", ("level/1/no_think", "level/6/no_think"), "{:.0%}"),
)
COLOURS = ("#2563a8", "#b4531f")
WIDTH, HEIGHT, LEFT, TOP, SPAN = 860, 170, 64, 34, 10
Point = tuple[float, float]


def smooth(points: Sequence[Point]) -> list[Point]:
    """Means over so many points, where they end."""
    parts = [points[max(0, i - SPAN + 1) : i + 1] for i in range(len(points))]
    return [(points[i][0], fmean(y for _, y in part)) for i, part in enumerate(parts)]


def panel(logs: Sequence[dict[str, float]], number: int) -> list[str]:
    """One of the panels, with the steps below."""
    title, keys, form = PANELS[number]
    series = [[(log["step"], log[key]) for log in logs if key in log] for key in keys]
    most = max((y for points in series for _, y in points), default=1.0) or 1.0
    last, bottom = max(log["step"] for log in logs), TOP + number * HEIGHT + HEIGHT - 50
    x: Callable[[float], float] = lambda step: LEFT + (WIDTH - LEFT - 20) * step / last  # noqa: E731
    y: Callable[[float], float] = lambda value: bottom - (HEIGHT - 70) * value / most  # noqa: E731
    made = [f'<text x="{LEFT}" y="{bottom - HEIGHT + 58}" font-weight="bold">{title}</text>']
    for share in (0.0, 0.5, 1.0):
        at, told = y(share * most), form.format(share * most)
        made.append(f'<line x1="{LEFT}" x2="{WIDTH - 20}" y1="{at:.1f}" y2="{at:.1f}" stroke="#ddd"/>')
        made.append(f'<text x="{LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{told}</text>')
    for points, colour in zip(series, COLOURS, strict=False):
        made += [f'<circle cx="{x(a):.1f}" cy="{y(b):.1f}" r="1.6" fill="{colour}" opacity=".35"/>' for a, b in points]
        line = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in smooth(points))
        made.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
    steps = [f'<text x="{x(s):.1f}" y="{bottom + 18}" text-anchor="middle">{s:.0f}</text>' for s in (0, last / 2, last)]
    return made + steps


def picture(logs: Sequence[dict[str, float]]) -> str:
    """The whole picture."""
    parts = [part for number in range(len(PANELS)) for part in panel(logs, number)]
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{TOP + HEIGHT * len(PANELS)}" '
    return head + 'font-family="sans-serif" font-size="12">' + "\n".join(parts) + "</svg>\n"


def main(argv: Sequence[str] | None = None) -> None:
    """Read a curve and write its picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("curve", type=Path, help="curve.jsonl of a training")
    parser.add_argument("out", type=Path, help="the SVG to write")
    options = parser.parse_args(argv)
    logs = [log for log in map(json.loads, options.curve.read_text("utf-8").splitlines()) if "policy/tokens" in log]
    if not logs:
        raise SystemExit(f"{options.curve} has no steps of a training by reinforcement")
    options.out.write_text(picture(logs), "utf-8")


if __name__ == "__main__":
    main()
