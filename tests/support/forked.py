"""Copies of the test's process, for what has to be killed or to run at once: a fresh start would import all anew."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from multiprocessing.context import ForkProcess
from typing import Any

from tersely.cli.app import main


def fork(work: Callable[..., Any], *args: Any, **options: Any) -> ForkProcess:
    """Start a function in a copy of this process."""
    process = multiprocessing.get_context("fork").Process(target=work, args=args, kwargs=options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns where there are several threads
        process.start()
    return process


def fork_command(*arguments: str) -> subprocess.Popen[str]:
    """Start `tersely` in a copy of this process, which has imported what it needs; its output goes to pipes."""

    def run() -> None:
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))  # one of these is what `Popen` reads until the program has begun
        sys.stdout, sys.stderr = (open(file, "w", encoding="utf-8", closefd=False) for file in (1, 2))  # noqa: SIM115
        signal.signal(signal.SIGINT, signal.default_int_handler)
        code = main(arguments)
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return subprocess.Popen(
            ["tersely"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8", preexec_fn=run
        )
