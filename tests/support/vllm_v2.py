"""vLLM's V2 runner on a CPU: its Triton kernels are interpreted, in a process of its own.

    python tests/support/vllm_v2.py ARMS MESSAGES OPTIONS

ARMS are keywords of `tersely.LLM.chat` by name, MESSAGES the chat of each, which are sent all at once, and OPTIONS
keywords of `tersely.LLM`; all JSON. With `"async_scheduling": true` the scheduler is one step ahead, as on GPUs. Prints
what the engine answered, as JSON: by arm, tokens and decisions.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from dataclasses import asdict
from functools import cache
from types import SimpleNamespace
from typing import Any
from unittest import mock

LIMIT = 100
"""Most tokens of an answer."""


def interpret_triton() -> None:
    """Let vLLM find a Triton, whose kernels run in Python."""
    os.environ.update(TRITON_INTERPRET="1", VLLM_USE_V2_MODEL_RUNNER="1")
    import triton.backends
    from triton.runtime import interpreter

    driver = SimpleNamespace(is_active=lambda: False)
    triton.backends.backends["cpu"] = SimpleNamespace(driver=driver, compiler=None)  # vLLM looks for no more than this
    # Looking for overflows and for the types of numbers took a third of the time.
    interpreter.interpreter_builder.options = interpreter.InterpreterOptions(sanitize_overflow=False)
    find_dtype = interpreter._get_np_dtype
    known = cache(find_dtype)
    interpreter._get_np_dtype = lambda kind: (find_dtype if kind.scalar.is_ptr() else known)(kind.scalar)
    builder = interpreter.InterpreterBuilder
    load, store = builder.create_masked_load, builder.create_masked_store

    def as_mask(mask: Any) -> Any:
        """Compiled kernels take whole numbers for masks."""
        return interpreter.TensorHandle(mask.data.astype(bool), interpreter.tl.int1)

    patch, scopes = interpreter._patch_lang, dict[Any, Any]()

    def patch_once(kernel: Any) -> Any:
        """Triton patches its own language before each call and takes that back after it, half of the time."""
        if kernel.__module__ not in scopes:
            scopes[kernel.__module__] = patch(kernel)
        return SimpleNamespace(restore=lambda: None)

    interpreter._patch_lang = patch_once
    builder.create_masked_load = lambda self, at, mask, *more: load(self, at, as_mask(mask), *more)
    builder.create_masked_store = lambda self, at, value, mask, how: store(self, at, value, as_mask(mask), how)


def answer(arms: dict[str, Any], messages: list[Any], options: dict[str, Any]) -> dict[str, Any]:
    """What an engine answers, how many drafts it accepted, and how often it preempted a request."""
    from vllm import SamplingParams
    from vllm.platforms.cpu import CpuPlatform

    import tersely

    gc.freeze()  # vLLM collects garbage seven times
    ahead, check = options.pop("async_scheduling", False), CpuPlatform.check_and_update_config

    def keep_ahead(platform: Any, config: Any) -> None:
        check(config)
        config.scheduler_config.async_scheduling = ahead

    with mock.patch.object(CpuPlatform, "check_and_update_config", keep_ahead):
        llm: Any = tersely.LLM(**options, disable_log_stats=False)
    scheduler = llm.llm_engine.engine_core.engine_core.scheduler
    greedy, params = SamplingParams(temperature=0, max_tokens=LIMIT), []
    for arm in arms.values():
        params += llm._mark(greedy, llm._chosen(arm)[0], 1)
    with mock.patch.object(scheduler, "_preempt_request", wraps=scheduler._preempt_request) as preempted:
        outputs = llm.chat(messages, params, use_tqdm=False, preset="off")
    made = {name: output.outputs[0] for name, output in zip(arms, outputs, strict=True)}
    accepted = sum(m.value for m in llm.get_metrics() if m.name == "vllm:spec_decode_num_accepted_tokens")
    return {
        "answers": {
            name: [list(one.token_ids), [asdict(decision) for decision in one.tersely.trace]]
            for name, one in made.items()
        },
        "preempted": preempted.call_count,
        "accepted": accepted,
    }


if __name__ == "__main__":
    gc.set_threshold(100_000)  # imports make a million objects, of which none is garbage
    interpret_triton()
    print(json.dumps(answer(*map(json.loads, sys.argv[1:]))))
