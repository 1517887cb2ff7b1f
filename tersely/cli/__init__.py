"""The `tersely` command; nothing below it is imported before it runs."""

from __future__ import annotations


def main() -> None:
    """Run the command line on `sys.argv` and exit with its code."""
    from .app import main as run_app

    raise SystemExit(run_app())
