"""CPU seconds of tests, with those of ended children: `PYTHONPATH=tests/support pytest -p cpu_times tests`.

A plugin of pytest. It prints the sum of each folder and the files that need most; what a process imports to collect the
tests, about 20 s in each, is not in it.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import PurePath
from typing import Any

import pytest

_BEGUN = pytest.StashKey[float]()
_by_file: Counter[str] = Counter()


def _seconds() -> float:
    return sum(os.times()[:4])


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> Iterator[None]:
    item.stash[_BEGUN] = _seconds()
    return (yield)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> Iterator[None]:
    try:
        return (yield)
    finally:
        item.user_properties.append(("cpu", _seconds() - item.stash[_BEGUN]))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    for name, value in report.user_properties:
        if name == "cpu":
            _by_file[report.nodeid.partition("::")[0]] += float(str(value))  # type: ignore[assignment]


def pytest_terminal_summary(terminalreporter: Any) -> None:
    folders: Counter[str] = Counter()
    for file, seconds in _by_file.items():
        folders[str(PurePath(file).parent)] += seconds  # type: ignore[assignment]
    terminalreporter.section(f"{sum(_by_file.values()):.0f} CPU seconds")
    for name, seconds in [*folders.most_common(), *_by_file.most_common(30)]:
        terminalreporter.line(f"{seconds:8.1f}  {name}")
