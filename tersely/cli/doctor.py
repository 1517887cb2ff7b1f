"""`tersely doctor`: does everything work here, with this model?"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

import typer

from . import options as o
from .loading import source

_COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}


def doctor(
    model: o.Model = None,
    engine: o.Engine = "transformers",
    base_url: o.BaseUrl = None,
    tokenizer: o.Tokenizer = None,
    markers: o.Markers = None,
    think_prompt: o.ThinkPrompt = False,
    as_json: o.Json = False,
) -> None:
    """Check installation, engine and model: versions, markers, off is off, cut and hint happen; exit 1 if one fails."""
    wanted = source(model, engine, markers, think_prompt, base_url, tokenizer)
    from .doctor_checks import DoctorCheck, examine

    checks: list[DoctorCheck] = []
    for check in examine(wanted):
        checks.append(check)
        if not as_json:
            _print(check.name, check.status, check.detail, check.remedy)
    failed = any(check.status == "fail" for check in checks)
    if as_json:
        print(json.dumps({"ok": not failed, "checks": [asdict(check) for check in checks]}, indent=2))
    if failed:
        raise typer.Exit(1)


def _print(name: str, status: str, detail: str, remedy: str) -> None:
    """One row of the table, printed at once since the next may take a while."""
    word = f"{status:<4}"
    if sys.stdout.isatty():
        word = typer.style(word, fg=_COLOURS[status], bold=True)
    print(f"{word}  {name:<14}  {detail}", flush=True)
    if remedy:
        print(f"{'':<22}{remedy}", flush=True)
