"""Command lines that are to fail as they should."""

from __future__ import annotations

import pytest

from tersely.cli.app import main


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Run a command line that is refused, in one line behind those on progress; returns that line."""
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    *progress, error = captured.err.splitlines()
    assert (code, captured.out) == (2, "")
    assert error.startswith("error: ") and not any("rror" in line for line in progress)
    return error
