"""Speed of the signals operation on a CPU compared with torch, in alternating runs.

Each ratio is the time of another implementation over that of the compiled operation, so above 1 means that ours is
faster: `log_softmax` computes entropy, the two highest probabilities and the log-sum-exp from torch.log_softmax;
`compiled` is the same function under torch.compile; `alone` is only torch.log_softmax of the logits in float32.
`fallback` is the time of `log_softmax` over that of our implementation in plain torch. `model_b1_share` is the time
that the operation adds to a decoding step of --model with one row, as a share of the forward pass.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from measuring import CLOCKS, make_parser, median_ratio, print_figures, time_in_turns
from torch import Tensor

from tersely.kernels.native import library
from tersely.kernels.signals import in_torch, logit_signals
from tersely.models import as_cache, find_cache

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


def compare(logits: Tensor, repeats: int, clock: str, compiled: bool) -> dict[str, float]:
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
    runs = {name: partial(way, logits) for name, way in ways.items()}
    taken = time_in_turns(runs, repeats, clock, calls)  # the first turn also compiles
    against = {name: (name, "ours") for name in ways if name != "ours"} | {"fallback": ("log_softmax", "fallback")}
    return {name: median_ratio(taken[slow], taken[fast]) for name, (slow, fast) in against.items()}


@torch.inference_mode()
def measure_share(model: Any, rows: int, steps: int, clock: Callable[[], float]) -> float:
    """Time of the operation over that of the forward pass, median of several decoding steps."""
    tokens, cache, shares = torch.randint(min(512, model.config.vocab_size), (rows, 128)), None, []
    for _ in range(steps + 2):
        start = clock()
        out = model(input_ids=tokens, **as_cache(model, cache), use_cache=True, logits_to_keep=1)
        done = clock()
        logit_signals(out.logits[:, -1])
        shares.append((clock() - done) / (done - start))
        tokens, cache = out.logits[:, -1].argmax(dim=-1, keepdim=True), find_cache(out)[1]
    return statistics.median(shares[2:])  # without the prompt and one warm-up step


def main(argv: list[str] | None = None) -> None:
    """Run the comparison and print the ratios."""
    parser = make_parser(__doc__, repeats=15, threads=1, clock="wall")
    parser.add_argument("--model", help="also measure decoding steps of the model in this folder")
    parser.add_argument("--dtype", default="bfloat16", help="dtype of --model (default: %(default)s)")
    parser.add_argument("--no-compile", action="store_true", help="leave out torch.compile, which takes minutes")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    if not library():
        raise SystemExit("the native library is missing; install tersely where there is a C compiler")

    ratios: dict[str, float] = {}
    for dtype in DTYPES:
        for rows in ROWS:
            logits = (torch.randn(rows, VOCABULARY) * 3).to(dtype)
            found = compare(logits, options.repeats, options.clock, not options.no_compile)
            ratios.update({f"{str(dtype)[6:]}_b{rows}_{name}": round(ratio, 2) for name, ratio in found.items()})
    if options.model:
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(options.model, dtype=options.dtype).eval()
        for rows in ROWS:
            ratios[f"model_b{rows}_share"] = round(
                measure_share(model, rows, options.repeats, CLOCKS[options.clock]), 5
            )
    print_figures(ratios, options.json)


if __name__ == "__main__":
    main()
