"""Command lines that are to fail as they should."""

from __future__ import annotations

import pytest

from tersely.cli.app import main


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Run a command line that is refused, in one line and with nothing on standard output; returns that line."""
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    assert (code, captured.out, captured.err.count("\n")) == (2, "", 1)
    assert captured.err.startswith("error: ")
    return captured.err
