"""Starting a vLLM in this process, among the many objects and modules that tests leave in it."""

from __future__ import annotations

import gc
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


@contextmanager
def quick_start() -> Iterator[None]:
    """Within it, vLLM starts without its warnings, and without looking through all that tests have made and imported.

    It collects garbage seven times, which takes 0.3 s each where nothing is frozen.
    """
    with warnings.catch_warnings(), ExitStack() as stack:
        warnings.simplefilter("ignore")  # vLLM's own imports warn
        import_module("vllm")
        gc.collect()
        gc.freeze()
        if find_spec("vllm.triton_utils.dispatcher"):  # of some releases
            dispatcher = import_module("vllm.triton_utils.dispatcher")
            stack.enter_context(mock.patch.object(dispatcher, "sys", _OwnModules()))
        try:
            yield
        finally:
            gc.unfreeze()  # fixtures that live now can be collected when their tests end
