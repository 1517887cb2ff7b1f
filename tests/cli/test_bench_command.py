"""`tersely bench` on the command line: numbers out of range."""

from __future__ import annotations

import pytest

from ..support.commands import refused


@pytest.mark.parametrize(("option", "value"), [("--rollouts", 0), ("--batch-size", 0), ("--margin", 1.5)])
def test_numbers_out_of_range_are_refused(option: str, value: float, capsys: pytest.CaptureFixture[str]) -> None:
    assert option in refused(capsys, "bench", option, value)
