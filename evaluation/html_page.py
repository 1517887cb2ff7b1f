"""Self-contained HTML pages: template, style, script and pictures in one file that loads nothing.

The content security policy allows the page's own style and script by their hashes, and nothing else. All text passes
through Jinja, which escapes it.
"""

from __future__ import annotations

import base64
import hashlib
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

_HEAD_BYTES = 2048


def make_environment(package: str) -> Environment:
    """Build a Jinja environment that finds templates in the `page` folder of a package and the shared base."""
    loader = ChoiceLoader([PackageLoader(package, "page"), PackageLoader("tersely.evaluation", "page_assets")])
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined)


def render_page(
    environment: Environment, template: str, *, package: str, style: str, script: str | None = None, **context: Any
) -> str:
    """Render a template that extends `base.html`, with a style sheet and a script from the package's `page` folder."""
    css = files("tersely.evaluation").joinpath("page_assets", "base.css").read_text(encoding="utf-8")
    css += files(package).joinpath("page", style).read_text(encoding="utf-8")
    code = "" if script is None else files(package).joinpath("page", script).read_text(encoding="utf-8")
    policy = f"default-src 'none'; img-src data:; style-src '{_hash(css)}'; "
    policy += f"script-src '{_hash(code)}'; " if code else ""
    policy += "base-uri 'none'; form-action 'none'"
    return environment.get_template(template).render(policy=policy, style=Markup(css), script=Markup(code), **context)


def is_page_by(path: Path, generator: str) -> bool:
    """Return whether a file is a page that a command of ours wrote, such as `tersely view`."""
    with path.open("rb") as file:
        return f'<meta name="generator" content="{generator}">'.encode() in file.read(_HEAD_BYTES)


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
