"""Starting a vLLM in this process, among the many objects and modules that tests leave in it.

As a program, `vllm_engine.py MODULE ARGUMENTS` runs a module of vLLM within `forked_engines`.
"""

from __future__ import annotations

import gc
import multiprocessing
import runpy
import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from importlib.util import find_spec
from typing import Any
from unittest import mock


class _OwnModules:
    """What vLLM's dispatcher takes for `sys`, to look for its kernels: in its own modules."""

    @property
    def modules(self) -> dict[str, Any]:
        return {name: module for name, module in list(sys.modules.items()) if name.startswith("vllm.")}


class _NoCollection:
    """What vLLM's modules take for `gc`: they would collect nine times for each engine, half a second each time."""

    def __getattr__(self, name: str) -> Any:
        return (lambda *_: 0) if name in ("collect", "freeze", "unfreeze") else getattr(gc, name)


@contextmanager
def quick_start() -> Iterator[None]:
    """Within it, vLLM starts without its warnings, and without looking through all that tests have made and imported.

    What it has imported collects no garbage from then on, also when engines end.
    """
    with warnings.catch_warnings(), ExitStack() as stack:
        warnings.simplefilter("ignore")  # vLLM's own imports warn
        import_module("vllm")
        gc.freeze()
        stack.enter_context(mock.patch.object(gc, "collect", return_value=0))
        if find_spec("vllm.triton_utils.dispatcher"):  # of some releases
            dispatcher = import_module("vllm.triton_utils.dispatcher")
            stack.enter_context(mock.patch.object(dispatcher, "sys", _OwnModules()))
        yield
    for module in _OwnModules().modules.values():
        if getattr(module, "gc", None) is gc:
            vars(module)["gc"] = _NoCollection()


@contextmanager
def forked_engines() -> Iterator[None]:
    """Within it, an engine's process is a copy of this one, as on GPUs; on CPUs vLLM would import all anew in it."""

    def copying() -> Any:
        gc.freeze()  # the copy collects garbage several times
        return multiprocessing.get_context("fork")

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # vLLM's own imports warn, and Python 3.12 where a process has several threads
        utils = import_module("vllm.v1.engine.utils")
        with mock.patch.object(utils, "get_mp_context", copying):
            yield


if __name__ == "__main__":
    gc.set_threshold(100_000)  # imports make a million objects, of which none is garbage
    del sys.argv[0]
    with forked_engines():
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
