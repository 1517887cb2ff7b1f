"""A chart as a PNG by matplotlib, in the light colours of the page's style sheet."""

from __future__ import annotations

import io
import re
import warnings
from importlib.resources import files
from pathlib import Path
from typing import Any

from ...errors import CapabilityError
from .scene import Dot, Item, Scene, SceneLine, SceneText

SIGN = "tersely report"
"""What a picture of ours names as its software."""
_DOTS = 2.0  # of the file a pixel of the chart
_HEAD, _EDGE = 50.0, 18.0
_COLOUR = re.compile(r"--([\w-]+):\s*(#[0-9a-f]{6})")


def require() -> None:
    """Raise CapabilityError if matplotlib is not installed."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise CapabilityError(
            "pictures need matplotlib, which is not installed; install tersely with its extra: "
            "pip install 'tersely[bench]'"
        ) from None


def png(scene: Scene, title: str, subtitle: str) -> bytes:
    """The picture of a chart under a title, at twice the chart's pixels."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patheffects import withStroke

    colours = _colours()
    width, height = scene.width + 2 * _EDGE, scene.height + 2 * _EDGE + _HEAD
    figure = Figure(figsize=(width / 100, height / 100), dpi=100 * _DOTS, facecolor=colours["card"])
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(-_EDGE, width - _EDGE), ylim=(height - _EDGE - _HEAD, -_EDGE - _HEAD))
    axes.axis("off")
    head = [SceneText(0, -_HEAD + 8, title, "ink", bold=True), SceneText(0, -_HEAD + 28, subtitle)]
    halo = [withStroke(linewidth=2.5, foreground=colours["card"])]
    for order, item in enumerate([*head, *scene.items]):
        _draw(axes, item, scene.letter * 0.72, colours, {"zorder": order}, halo)
    out = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # a name in a script that the font lacks
        figure.savefig(out, format="png", metadata={"Software": SIGN, "Title": title})
    return out.getvalue()


def is_picture(path: Path) -> bool:
    """Whether a file is a picture that was made here."""
    with path.open("rb") as file:
        return SIGN.encode() in file.read(512)


def _draw(axes: Any, item: Item, points: float, colours: dict[str, str], at: dict[str, int], halo: list[Any]) -> None:
    """Draw one shape; sizes in points, 72 of which make the figure's 100 pixels."""
    colour = colours[item.role]
    match item:
        case SceneLine():
            style = (0, (3, 4)) if item.dashed else "-"
            xs, ys = zip(*item.points, strict=True)
            axes.plot(xs, ys, color=colour, linewidth=item.width * 0.72, linestyle=style, **at)
        case Dot():
            face, edge = (colours["card"], colour) if item.hollow else (colour, colours["card"])
            size = (2 * item.radius * 0.72) ** 2
            axes.scatter([item.x], [item.y], s=size, facecolor=face, edgecolor=edge, linewidth=1.1, **at)
        case SceneText():
            side = {"start": "left", "middle": "center", "end": "right"}[item.anchor]
            font = {"fontsize": points, "weight": "bold" if item.bold else "normal", "parse_math": False}
            place = {"ha": side, "va": "center_baseline"}
            axes.text(item.x, item.y, item.text, color=colour, path_effects=halo, **font, **place, **at)


def _colours() -> dict[str, str]:
    """The colours of roles: the first value that the style sheet gives a variable, which is the light one."""
    style = files(__package__).joinpath("page", "report.css").read_text(encoding="utf-8")
    found: dict[str, str] = {}
    for name, value in _COLOUR.findall(style):
        found.setdefault(name, value)
    return found
