"""The pictures of the documentation: what a replay shows, and what the command line and its pages look like.

`python benchmarks/docs_figures.py --replay replay.json` draws docs/bench/recorded.png from the output of
`tersely replay FILES --preset balanced --preset careful --json`. `--screens` runs the embedded model and takes pictures
of the terminal and of the viewer's page, which needs chromium.
"""

from __future__ import annotations

import argparse
import io
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

OUT = Path(__file__).parents[1] / "docs" / "bench"
QUESTION = (
    "Lea owns 36 tickets. Lea wins 29 tickets. Ted counts 429 birds. Later Lea gets 7 tickets. Next Lea finds "
    "6 tickets. The hall seats 35 people. None of that counts. Lea has 163 tickets. Lea sells 127 tickets. "
    "Later Lea gets 62 tickets. Next Lea makes 3 times the tickets. Lea breaks 134 tickets. How many tickets "
    "are there in the end, with Lea?"
)
COLORS = {"balanced": "#2f55d4", "careful": "#00795c", "equal-budget": "#9a5200", "first-correct": "#556072"}


def read_points(path: Path) -> dict[str, list[dict[str, Any]]]:
    """The sets of each preset, and of the baselines of the first preset, by name."""
    found = json.loads(path.read_text(encoding="utf-8"))
    presets = found.get("presets", [found])
    baselines = {name: one["sets"] for name, one in presets[0]["baselines"].items()}
    return {one["preset"]: one["sets"] for one in presets} | baselines


def draw_recorded(path: Path, out: Path) -> None:
    """Draw what presets and baselines save and lose on each set of recorded outputs."""
    from matplotlib.figure import Figure

    points = read_points(path)
    names = [f"{one['name'].replace('__', ', ')} ({one['n']})" for one in next(iter(points.values()))]
    figure = Figure(figsize=(9.5, 0.62 * len(names) + 1.6), layout="constrained")
    saved, lost = figure.subplots(1, 2, sharey=True)
    height = 0.8 / len(points)
    for place, (label, sets) in enumerate(points.items()):
        at = [row + (place - (len(points) - 1) / 2) * height for row in range(len(names))]
        for axes, key in ((saved, "thinking_saved"), (lost, "lost")):
            axes.barh(at, [100 * one[key] for one in sets], 0.85 * height, color=COLORS[label], label=label)
    saved.set_yticks(range(len(names)), names)
    saved.invert_yaxis()
    saved.set_xlabel("thinking saved, in %")
    lost.set_xlabel("right answers lost, in %")
    for axes in (saved, lost):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="x", color="#e3e7ed")
        axes.set_axisbelow(True)
    figure.legend(*saved.get_legend_handles_labels(), loc="outside lower center", ncols=len(points), frameon=False)
    figure.savefig(out / "recorded.png", dpi=130, metadata={"Software": "tersely"})


def run(*arguments: str) -> str:
    """Run a command of tersely; returns what it prints, in colours."""
    command = [sys.executable, "-m", "tersely.cli", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout


def take_screens(out: Path) -> None:
    """Take pictures of `tersely run` in a terminal, and of the page of its trace in a browser."""
    from rich.console import Console
    from rich.text import Text

    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        raise SystemExit("no chromium is installed, which takes the pictures of pages")
    with tempfile.TemporaryDirectory() as folder:
        trace, page = Path(folder) / "trace.json", Path(folder) / "trace.html"
        printed = run("run", QUESTION, "--model", "tersely-tiny-large", "--seed", "2", "--trace", str(trace))
        console = Console(record=True, width=100, file=io.StringIO())
        console.print(Text.from_ansi(f'$ tersely run "{QUESTION}" --model tersely-tiny-large --seed 2\n{printed}'))
        drawn = re.sub(r"@font-face \{.*?\}", "", console.export_svg(title="tersely run"), flags=re.S)
        (out / "run.svg").write_text(drawn, encoding="utf-8")  # without fonts from other hosts
        run("view", str(trace), "--out", str(page))
        picture = out / "view.png"
        switches = "--headless --no-sandbox --disable-gpu --hide-scrollbars --window-size=1100,1000".split()
        subprocess.run([browser, *switches, f"--screenshot={picture}", page.as_uri()], check=True, capture_output=True)


def main(argv: list[str] | None = None) -> None:
    """Draw what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replay", type=Path, help="output of `tersely replay --json`")
    parser.add_argument("--screens", action="store_true", help="take pictures of the terminal and the viewer")
    parser.add_argument("--out", type=Path, default=OUT, help="folder of the pictures (default: docs/bench)")
    options = parser.parse_args(argv)
    if options.replay is None and not options.screens:
        parser.error("nothing to draw; accepted: --replay FILE, --screens, or both")
    if options.replay is not None:
        draw_recorded(options.replay, options.out)
    if options.screens:
        take_screens(options.out)


if __name__ == "__main__":
    main()
