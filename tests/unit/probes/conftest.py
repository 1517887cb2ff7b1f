"""Fixtures of the tests of probes."""

from __future__ import annotations

import pytest

from ...support.planted_calibration import Calibration


@pytest.fixture(scope="session")
def calibration(tmp_path_factory: pytest.TempPathFactory) -> Calibration:
    """A calibration that takes seconds, shared by all tests."""
    return Calibration(tmp_path_factory.mktemp("calibrated"))
