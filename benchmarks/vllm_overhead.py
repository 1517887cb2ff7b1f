"""What control costs inside vLLM, and what its savings bring: both sides on the same prompts, timed turn by turn.

Each ratio is plain vLLM's time over ours at the same tokens, so above 1 means that ours is faster: `inactive` with the
processor loaded and no request under control, `active` with a controller a row that reads everything, could act at any
token, and finds no reason to (its policy waits for 64 answers that agree), `signals` with entropy, top probability and
margin of every token as well. `saving` is for the embedded model, whose thinking really ends earlier: the share of the
wall clock saved over the share of tokens saved (1: every token saved is time saved).
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

from measuring import make_parser, median_ratio, print_figures, time_in_turns

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
    from tersely.controller.vllm.request_controller import RequestController
    from tersely.controller.vllm.worker_context import DRIVERS

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
    found: dict[str, list[Any]] = {}

    def run(name: str) -> None:
        llm, extra = arms[name]
        settings = {"temperature": 0, "max_tokens": tokens, "min_tokens": tokens, "detokenize": False}
        # No end of the turn, which a controller would put off.
        params = [SamplingParams(**settings, extra_args=one) for one in extra()]
        found[name] = [one.outputs[0].token_ids for one in llm.generate(prompts, params, use_tqdm=False)]
        if found[name] != next(iter(found.values())):
            raise SystemExit(f"{name} put out other tokens than the rest: the ratios would mean nothing")

    taken = time_in_turns({name: partial(run, name) for name in arms}, repeats, clock)
    return {name: median_ratio(taken["plain"], taken[name]) for name in arms if name != "plain"}


def saving(plain: Any, ours: Any, repeats: int, clock: str) -> dict[str, float]:
    """Shares of tokens and of time saved on four times as many questions as run at once, and one over the other."""
    from vllm import SamplingParams

    prompts, counts = chats(plain, 4 * ROWS), dict[str, int]()

    def run(name: str, llm: Any, control: Any) -> None:
        params = SamplingParams(temperature=0, max_tokens=512, detokenize=False, extra_args=control)
        outputs = llm.generate(prompts, params, use_tqdm=False)
        counts[name] = sum(len(output.outputs[0].token_ids) for output in outputs)

    ways = {"plain": partial(run, "plain", plain, None), "ours": partial(run, "ours", ours, {"tersely": "balanced"})}
    taken = time_in_turns(ways, repeats, clock)
    tokens = 1 - counts["ours"] / counts["plain"]
    clocked = 1 - 1 / median_ratio(taken["plain"], taken["ours"])
    return {"tokens_saved": tokens, "time_saved": clocked, "saving": clocked / tokens}


def main(argv: list[str] | None = None) -> None:
    """Run the comparison and print the ratios."""
    from tersely.models import get_model_path

    parser = make_parser(__doc__, repeats=7, clock="wall")
    parser.add_argument("--model", help="also time a model from this folder, which thinks between <think> and </think>")
    parser.add_argument("--dtype", default="bfloat16", help="dtype of --model (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=96, help="new tokens a run (default: %(default)s)")
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
    print_figures(ratios, options.json)


if __name__ == "__main__":
    main()
