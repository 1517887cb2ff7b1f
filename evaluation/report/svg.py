"""A chart as SVG that takes its colours from the page around it."""

from __future__ import annotations

import html

from .scene import Dot, Item, Scene, SceneLine, SceneText


def svg(scene: Scene, name: str = "") -> str:
    """An inline SVG; `name` becomes a class of it, hovering tells what a dot is."""
    width, height = (f"{v:.0f}" for v in (scene.width, scene.height))
    head = (
        f'<svg class="chart {name}" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'font-size="{scene.letter:g}" role="img" aria-label="{html.escape(scene.about)}">'
    )
    return "\n".join([head, *map(_element, scene.items), "</svg>"])


def _element(item: Item) -> str:
    match item:
        case SceneLine():
            points = " ".join(f"{x:.1f},{y:.1f}" for x, y in item.points)
            dashes = ' stroke-dasharray="3 4"' if item.dashed else ""
            return f'<polyline class="{item.role}" points="{points}" stroke-width="{item.width:g}"{dashes}/>'
        case Dot():
            tip = f"<title>{html.escape(item.tip)}</title>" if item.tip else ""
            kind = f"{item.role} hollow" if item.hollow else item.role
            return f'<circle class="{kind}" cx="{item.x:.1f}" cy="{item.y:.1f}" r="{item.radius:.1f}">{tip}</circle>'
        case SceneText():
            kind = f"{item.role} bold" if item.bold else item.role
            place = f'x="{item.x:.1f}" y="{item.y:.1f}" dy=".35em" text-anchor="{item.anchor}"'
            return f'<text class="{kind}" {place}>{html.escape(item.text)}</text>'
