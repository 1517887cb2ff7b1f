"""Tokens per second of an int4 checkpoint in vLLM on a CPU, with vLLM's kernel and with ours, in alternating runs.

`plain_b8` is the speed of vLLM's own kernel with 8 concurrent requests, `ours_b8` that with TERSELY_INT4_KERNEL=1, and
`ratio_b8` ours over plain, the median over runs. Prompts are short, so nearly all of it is decoding. `agree` is the
share of tokens in greedy answers that are the same with both, which shows the effect of 8-bit activations.
`python benchmarks/rounded_checkpoint.py MODEL OUT` makes such a checkpoint.
"""

from __future__ import annotations

import os
import statistics
import warnings
from functools import partial
from typing import Any

from measuring import make_parser, median_ratio, print_figures, time_in_turns

from tersely.kernels.quantization.int4 import SWITCH

PROMPT = "Write a function that sorts a list of numbers, number {}."


def start(folder: str, ours: bool, rows: int, compiled: bool) -> tuple[Any, str]:
    """Start a vLLM in this process; also returns the kernels of its int4 layers. Start the one with ours last."""
    from vllm import LLM

    if ours:
        from tersely.kernels.quantization.vllm import register

        os.environ[SWITCH] = "1"
        register()
    llm = LLM(
        folder,
        dtype="bfloat16",
        max_model_len=512,
        max_num_seqs=rows,
        enforce_eager=not compiled,
        kv_cache_memory_bytes=1 << 29,
        enable_prefix_caching=False,
        disable_log_stats=True,
        seed=0,
    )
    executor: Any = llm.llm_engine.model_executor
    modules = executor.driver_worker.worker.model_runner.model.modules()
    owners: list[Any] = [getattr(m, "scheme", None) or getattr(m, "quant_method", None) for m in modules]
    return llm, ",".join(sorted({type(owner.kernel).__name__ for owner in owners if hasattr(owner, "kernel")}))


def compare(sides: dict[str, Any], batches: list[int], tokens: int, repeats: int, clock: str) -> dict[str, float]:
    """Tokens per second of each side and their ratio for each number of requests, and the agreement of the answers."""
    from vllm import SamplingParams

    found: dict[str, float] = {}
    params = SamplingParams(temperature=0, max_tokens=tokens, min_tokens=tokens, detokenize=False)
    said: dict[str, list[list[int]]] = {}
    for rows in batches:
        prompts = [PROMPT.format(row) for row in range(rows)]

        def run(name: str, prompts: list[str] = prompts) -> None:
            outputs = sides[name].generate(prompts, params, use_tqdm=False)
            said[name] = [list(output.outputs[0].token_ids) for output in outputs]

        taken = time_in_turns({name: partial(run, name) for name in sides}, repeats, clock)
        for name, seconds in taken.items():
            found[f"{name}_b{rows}"] = rows * tokens / statistics.median(seconds)
        found[f"ratio_b{rows}"] = median_ratio(taken["plain"], taken["ours"])
    same = [a == b for one, other in zip(*said.values(), strict=True) for a, b in zip(one, other, strict=True)]
    return found | {"agree": sum(same) / len(same)}


def main(argv: list[str] | None = None) -> None:
    """Run the comparison and print the results."""
    parser = make_parser(__doc__, repeats=5, clock="wall")
    parser.add_argument("model", help="folder of the checkpoint")
    parser.add_argument(
        "--batches", default="1,8,32", help="concurrent requests, separated by commas (default: %(default)s)"
    )
    parser.add_argument("--tokens", type=int, default=32, help="new tokens per request (default: %(default)s)")
    parser.add_argument("--compile", action="store_true", help="let vLLM compile the model, which takes a minute each")
    options = parser.parse_args(argv)
    warnings.simplefilter("ignore")
    from tersely.controller.vllm.engine import prepare_environment

    prepare_environment(on_cpu=True)
    os.environ.update(VLLM_DISABLE_COMPILE_CACHE="1", **{SWITCH: "0"})
    if not options.compile:
        os.environ["VLLM_CPU_CI_ENV"] = "1"  # no warm-up, but no compiler either
    batches = [int(rows) for rows in options.batches.split(",")]
    started = {name: start(options.model, name == "ours", max(batches), options.compile) for name in ("plain", "ours")}
    engines = {name: engine for name, (engine, _) in started.items()}
    found: dict[str, Any] = {f"{name}_kernel": kernel for name, (_, kernel) in started.items()}
    found |= compare(engines, batches, options.tokens, options.repeats, options.clock)
    print_figures(found, options.json, 4)


if __name__ == "__main__":
    main()
