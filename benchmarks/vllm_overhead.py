"""What control costs inside vLLM, and what its savings bring: both sides on the same prompts, timed turn by turn.

Each ratio is plain vLLM's time over ours at the same tokens, so above 1 means that ours is faster: `inactive` with the
processor loaded and no request under control, `active` with a controller a row that reads everything, could act at any
token, and finds no reason to (its policy waits for 64 answers that agree), `signals` with entropy, top probability and
margin of every token as well. `saving` is for the embedded model, whose thinking really ends earlier: the share of the
wall clock saved over the share of tokens saved (1: every token saved is time saved).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
ROWS = 32
os.environ.update(VLLM_CPU_CI_ENV="1")  # no warm-up: the first turn is one


def start(folder: str, dtype: str, processor: bool, markers: list[str] | None) -> Any:
    """A vLLM in this process."""
    from tersely.controller.vllm.engine import PROCESSOR, prepare_environment

    prepare_environment(on_cpu=True)
    from vllm import LLM

    more: dict[str, Any] = {"logits_processors": [PROCESSOR]} if processor else {}
    if processor and markers:
        more["additional_config"] = {"tersely": {"markers": markers}}
    return LLM(
        folder,
        dtype=dtype,
        max_model_len=1024,
        max_num_seqs=ROWS,
        enforce_eager=True,
        kv_cache_memory_bytes=1 << 30,
        enable_prefix_caching=False,
        disable_log_stats=True,
        seed=0,
        **more,
    )


def chats(llm: Any, rows: int) -> list[Any]:
    """Questions as prompts that have opened the thinking."""
    from tersely.evaluation.tasks.questions import load

    tokenizer = llm.get_tokenizer()
    prompts = []
    for question in load("tiny", "test", rows, 3):
        message = [{"role": "user", "content": question.problem}]
        text = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
        text = text if text.rstrip().endswith("<think>") else f"{text}<think>\n"
        prompts.append({"prompt_token_ids": tokenizer(text, add_special_tokens=False)["input_ids"]})
    return prompts


def with_signals(rows: int, end: tuple[int, ...]) -> list[dict[str, Any]]:
    """Arguments of requests that keep the signals of every token."""
    from tersely.controller.types import Capability
    from tersely.controller.vllm.request_controller import DRIVERS, RequestController

    for row in range(rows):
        DRIVERS[f"row {row}"] = RequestController(None, end, frozenset({Capability.LOGIT_SIGNALS}), keep_signals=True)
    return [{"tersely": {"driver": f"row {row}"}} for row in range(rows)]


def overhead(plain: Any, ours: Any, tokens: int, repeats: int, clock: str) -> dict[str, float]:
    """Median ratios at the same tokens."""
    from vllm import SamplingParams

    prompts = chats(plain, ROWS)
    watched = [{"tersely": {"policies": {"convergence": {"agree": 64}}, "answer_reserve": 1}}] * ROWS
    end = (ours.get_tokenizer().eos_token_id,)
    arms: dict[str, tuple[Any, Callable[[], list[Any]]]] = {
        "plain": (plain, lambda: [None] * ROWS),
        "inactive": (ours, lambda: [None] * ROWS),
        "active": (ours, lambda: watched),
        "signals": (ours, lambda: with_signals(ROWS, end)),
    }
    times: dict[str, list[float]] = {name: [] for name in arms}
    expected = None
    for turn in range(repeats + 1):
        for name in arms if turn % 2 else reversed(arms):
            llm, extra = arms[name]
            params = [
                SamplingParams(
                    temperature=0, max_tokens=tokens, min_tokens=tokens, detokenize=False, extra_args=one
                )  # no end of the turn, which a controller would put off
                for one in extra()
            ]
            begun = CLOCKS[clock]()
            outputs = llm.generate(prompts, params, use_tqdm=False)
            times[name].append(CLOCKS[clock]() - begun)
            ids = [output.outputs[0].token_ids for output in outputs]
            expected = expected or ids
            if ids != expected:
                raise SystemExit(f"{name} put out other tokens than the rest: the ratios would mean nothing")
    return {name: median_ratio(times["plain"], times[name]) for name in arms if name != "plain"}


def median_ratio(plain: list[float], ours: list[float]) -> float:
    """The median of plain over ours, turn by turn; the first turn warms caches up."""
    return statistics.median(a / b for a, b in zip(plain[1:], ours[1:], strict=True))


def saving(plain: Any, ours: Any, repeats: int, clock: str) -> dict[str, float]:
    """Shares of tokens and of time saved on four times as many questions as run at once, and one over the other."""
    from vllm import SamplingParams

    prompts = chats(plain, 4 * ROWS)
    found: dict[str, tuple[list[float], int]] = {"plain": ([], 0), "ours": ([], 0)}
    for turn in range(repeats + 1):
        for name in found if turn % 2 else reversed(found):
            extra = None if name == "plain" else {"tersely": "balanced"}
            params = SamplingParams(temperature=0, max_tokens=512, detokenize=False, extra_args=extra)
            begun = CLOCKS[clock]()
            outputs = (plain if name == "plain" else ours).generate(prompts, params, use_tqdm=False)
            found[name][0].append(CLOCKS[clock]() - begun)
            found[name] = (found[name][0], sum(len(output.outputs[0].token_ids) for output in outputs))
    tokens = 1 - found["ours"][1] / found["plain"][1]
    clocked = 1 - 1 / median_ratio(found["plain"][0], found["ours"][0])
    return {"tokens_saved": tokens, "time_saved": clocked, "saving": clocked / tokens}


def main(argv: list[str] | None = None) -> None:
    """Run the comparison and print the ratios."""
    from tersely.models import get_model_path

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="also time a model from this folder, which thinks between <think> and </think>")
    parser.add_argument("--dtype", default="bfloat16", help="dtype of --model (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=96, help="new tokens a run (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=7, help="runs of each kind (default: %(default)s)")
    parser.add_argument("--clock", choices=sorted(CLOCKS), default="wall", help="cpu helps on a loaded machine")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(argv)
    warnings.simplefilter("ignore")

    ratios: dict[str, float] = {}
    alive = []  # what vLLM sets up for a process goes with the first engine that does
    subjects = {"tiny": (str(get_model_path("tersely-tiny-large")), "float32")}
    if options.model:
        subjects["model"] = (options.model, options.dtype)
    for name, (folder, dtype) in subjects.items():
        markers = None if name == "tiny" else ["<think>", "</think>"]
        plain, ours = (start(folder, dtype, processor, markers) for processor in (False, True))
        alive.append((plain, ours))
        found = overhead(plain, ours, options.tokens, options.repeats, options.clock)
        if name == "tiny":
            found |= saving(plain, ours, max(1, options.repeats // 3), options.clock)
        ratios |= {f"{name}_{key}": round(value, 4) for key, value in found.items()}
    if options.json:
        print(json.dumps(ratios))
    else:
        for key, ratio in ratios.items():
            print(f"{key:20} {ratio:.3f}")


if __name__ == "__main__":
    main()
