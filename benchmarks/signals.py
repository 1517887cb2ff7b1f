"""Speed of the signals operation on a CPU compared with torch, in alternating runs.

Each ratio is the time of another implementation over that of the compiled operation, so above 1 means that ours is
faster: `log_softmax` computes entropy, the two highest probabilities and the log-sum-exp from torch.log_softmax;
`compiled` is the same function under torch.compile; `alone` is only torch.log_softmax of the logits in float32.
`fallback` is the time of `log_softmax` over that of our implementation in plain torch. `model_b1_share` is the time
that the operation adds to a decoding step of --model with one row, as a share of the forward pass.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tersely.kernels.native import library
from tersely.kernels.signals import in_torch, logit_signals

CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
VOCABULARY = 151_936
ROWS = (1, 32)
DTYPES = (torch.float32, torch.bfloat16)


def with_log_softmax(logits: Tensor) -> Tensor:
    """The four signals [4, rows], without the handling of -inf that ours has."""
    log_probs = torch.log_softmax(logits.float(), dim=-1)
    probs = log_probs.exp()
    entropy = -(probs * log_probs).sum(dim=-1)
    top, second = probs.topk(2, dim=-1).values.unbind(dim=-1)
    log_total = logits[:, 0].float() - log_probs[:, 0]
    return torch.stack((entropy, top, top - second, log_total))


def alone(logits: Tensor) -> Tensor:
    """The minimum work in torch, without any signal."""
    return torch.log_softmax(logits.float(), dim=-1)


def compare(logits: Tensor, repeats: int, clock: Callable[[], float], compiled: bool) -> dict[str, float]:
    """Median ratios on one tensor of logits."""
    ways: dict[str, Callable[[Tensor], Any]] = {
        "ours": logit_signals,
        "log_softmax": with_log_softmax,
        "alone": alone,
        "fallback": in_torch,
    }
    if compiled:
        ways["compiled"] = torch.compile(with_log_softmax, dynamic=False)
    calls = max(1, 32 // len(logits))  # one call on one row is too short for a clock
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(repeats + 1):
        for name in list(ways) if turn % 2 else reversed(ways):
            start = clock()
            for _ in range(calls):
                ways[name](logits)
            times[name].append(clock() - start)
    # The first run warms up the caches, and compiles.
    kept = {name: values[1:] for name, values in times.items()}
    against = {name: (name, "ours") for name in ways if name != "ours"} | {"fallback": ("log_softmax", "fallback")}
    return {
        name: statistics.median(a / b for a, b in zip(kept[slow], kept[fast], strict=True))
        for name, (slow, fast) in against.items()
    }


@torch.inference_mode()
def measure_share(model: Any, rows: int, steps: int, clock: Callable[[], float]) -> float:
    """Time of the operation over that of the forward pass, median of several decoding steps."""
    tokens, cache, shares = torch.randint(min(512, model.config.vocab_size), (rows, 128)), None, []
    for _ in range(steps + 2):
        start = clock()
        out = model(input_ids=tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)
        done = clock()
        logit_signals(out.logits[:, -1])
        shares.append((clock() - done) / (done - start))
        tokens, cache = out.logits[:, -1].argmax(dim=-1, keepdim=True), out.past_key_values
    return statistics.median(shares[2:])  # without the prompt and one warm-up step


def main(argv: list[str] | None = None) -> None:
    """Run the comparison and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="also measure decoding steps of the model in this folder")
    parser.add_argument("--dtype", default="bfloat16", help="dtype of --model (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=15, help="repetitions of each comparison (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default: %(default)s)")
    parser.add_argument("--clock", choices=sorted(CLOCKS), default="wall", help="cpu helps on a loaded machine")
    parser.add_argument("--no-compile", action="store_true", help="leave out torch.compile, which takes minutes")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    if not library():
        raise SystemExit("the native library is missing; install tersely where there is a C compiler")

    ratios, clock = {}, CLOCKS[options.clock]
    for dtype in DTYPES:
        for rows in ROWS:
            logits = (torch.randn(rows, VOCABULARY) * 3).to(dtype)
            found = compare(logits, options.repeats, clock, not options.no_compile)
            ratios.update({f"{str(dtype)[6:]}_b{rows}_{name}": round(ratio, 2) for name, ratio in found.items()})
    if options.model:
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(options.model, dtype=options.dtype).eval()
        for rows in ROWS:
            ratios[f"model_b{rows}_share"] = round(measure_share(model, rows, options.repeats, clock), 5)
    if options.json:
        print(json.dumps(ratios))
    else:
        for key, ratio in ratios.items():
            print(f"{key:28} {ratio:.4g}")


if __name__ == "__main__":
    main()
