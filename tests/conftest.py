"""What several test files share: an offline process, and real vLLM engines that are started once."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING

import pytest

from .browser import browser as browser  # the fixture

if TYPE_CHECKING:
    from vllm import LLM

# Read when torch, transformers and vLLM are imported, hence before any test module.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # models this small lose more to waiting than threads win
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.update(
    VLLM_CPU_CI_ENV="1",  # no warm-up
    VLLM_CPU_KVCACHE_SPACE="1",
    VLLM_CPU_OMP_THREADS_BIND="nobind",  # the engine lives in this process: binding would pin every test to one core
    VLLM_ENABLE_V1_MULTIPROCESSING="0",  # three processes each importing vLLM would triple the start
    VLLM_LOGGING_LEVEL="ERROR",
    VLLM_NO_USAGE_STATS="1",
)


@pytest.fixture(scope="session")
def start_vllm() -> Callable[..., LLM]:
    """Start a vLLM on an embedded model, once per set of arguments: `start_vllm("tersely-tiny-small")`.

    Further keywords go to `vllm.LLM`; they have to be hashable.
    """
    from tersely.controller.pretrained import path_of

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # vLLM's own imports warn
        vllm = pytest.importorskip("vllm")

    @cache
    def start(name: str, **options: object) -> LLM:
        settings: dict[str, object] = {
            "dtype": "float32",
            "enforce_eager": True,
            "max_model_len": 2048,
            "distributed_executor_backend": "uni",
            "gpu_memory_utilization": 0.3,  # on CPUs: the share of memory that has to be free
            "disable_log_stats": True,
        }
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return vllm.LLM(str(path_of(name)), **(settings | options))

    return start


@pytest.fixture(scope="session")
def vllm_llm(start_vllm: Callable[..., LLM]) -> LLM:
    """A plain vLLM on the small embedded model."""
    return start_vllm("tersely-tiny-small")
