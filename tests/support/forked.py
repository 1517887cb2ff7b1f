"""Copies of the test's process, for what has to be killed or to run at once: a fresh start would import all anew."""

from __future__ import annotations

import multiprocessing
import warnings
from collections.abc import Callable
from multiprocessing.context import ForkProcess
from typing import Any


def fork(work: Callable[..., Any], *args: Any, **options: Any) -> ForkProcess:
    """Start a function in a copy of this process."""
    process = multiprocessing.get_context("fork").Process(target=work, args=args, kwargs=options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns where there are several threads
        process.start()
    return process
