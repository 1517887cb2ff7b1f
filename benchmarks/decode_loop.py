"""Speed of our decode loop and of `model.generate`: same model, same prompts, same tokens, timed in turns.

Each ratio is `generate`'s time over ours, so above 1 means that ours is faster. `off` runs without watchers, `on` with
one watcher a row that never acts: a real controller in shadow mode where the model has thinking markers. `loaded`: the
steps of a model with grouped attention (`load_engine(..., grouped=True)`), against the same model as transformers loads
it, after prompts of so many tokens; its sums have another order, so its tokens may differ. `drawn`: sampling alone, of
so many rows and tokens to choose from: `generate`'s way against one number a row (`SamplingParams.inverse_cdf`).
"""

from __future__ import annotations

import copy
import statistics
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from measuring import CLOCKS, make_parser, median_ratio, print_figures, time_in_turns
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

from tersely.controller.engines.transformers.decode import MakeWatcher, as_custom_generate
from tersely.controller.engines.transformers.sampler import inverse_cdf
from tersely.controller.types import KEEP, Directive, StepInfo, Watcher
from tersely.kernels.attention import use_grouped


class Idle:
    """A watcher that never acts, yet looks at each token."""

    def __init__(self) -> None:
        self.seen = 0

    def observe(self, token: int, step: StepInfo | None = None) -> Directive:
        """Count the token."""
        self.seen += 1
        return KEEP


def tiny_model() -> Any:
    """A random Qwen3 model in which the loop, not the arithmetic, takes much of the time."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        eos_token_id=1,
        pad_token_id=0,
    )
    return Qwen3ForCausalLM(config).eval()


def shadow_controllers(tokenizer: Any) -> MakeWatcher:
    """Make controllers with all policies of the balanced preset that decide everything and do nothing."""
    from tersely.controller.budgets import fit_budget
    from tersely.controller.controller import Controller
    from tersely.controller.policies import make_policies
    from tersely.controller.replay import bind_for_replay
    from tersely.controller.text.markers import find_markers
    from tersely.controller.text.tokenizer_adapter import get_adapter

    codec, markers = get_adapter(tokenizer), find_markers(tokenizer)
    policies, budget = bind_for_replay(make_policies("balanced")), fit_budget("normal", 4096, None)
    return lambda prompt: Controller(policies, codec, markers, budget, shadow=True)


def batch(rows: int, vocabulary: int, most: int = 32) -> dict[str, torch.Tensor]:
    """Random prompts of unequal length, a quarter of `most` to `most`, padded on the left."""
    generator = torch.Generator().manual_seed(rows)
    lengths = torch.randint(most // 4, most + 1, (rows, 1), generator=generator)
    ids = torch.randint(3, vocabulary, (rows, most), generator=generator)
    mask = (torch.arange(most)[None] >= most - lengths).long()
    return {"input_ids": ids * mask, "attention_mask": mask}


def compare(
    model: Any, make_watcher: MakeWatcher, rows: int, tokens: int, repeats: int, clock: str
) -> dict[str, float]:
    """Time generate, off and on in turn on one batch; returns the median ratio of each, tokens being the same."""
    config, inputs = task(model, rows, tokens)
    arms: dict[str, dict[str, Any]] = {
        "generate": {},
        "off": {"custom_generate": as_custom_generate()},
        "on": {"custom_generate": as_custom_generate(make_watcher)},
    }
    found: dict[str, torch.Tensor] = {}

    def run(name: str) -> None:
        found[name] = model.generate(**inputs, generation_config=config, **arms[name])
        if model.device.type == "cuda":
            torch.cuda.synchronize()
        if not torch.equal(found[name], next(iter(found.values()))):
            raise SystemExit(f"{name} put out other tokens than the rest at {rows} rows: the ratios would mean nothing")

    taken = time_in_turns({name: partial(run, name) for name in arms}, repeats, clock)
    return {name: median_ratio(taken["generate"], taken[name]) for name in ("off", "on")}


def task(model: Any, rows: int, tokens: int, prompt: int = 32) -> tuple[Any, dict[str, torch.Tensor]]:
    """Settings of greedy runs that are all of one length, and their inputs."""
    config = copy.deepcopy(model.generation_config)
    # An id that no token has: every run is as long as the others, and the check for the end is still paid for.
    config.update(max_new_tokens=tokens, do_sample=False, eos_token_id=model.config.vocab_size, pad_token_id=0)
    config.temperature, config.top_p, config.top_k = 1.0, 1.0, 50
    inputs = batch(rows, min(model.config.vocab_size, 512), prompt)
    return config, {name: value.to(model.device) for name, value in inputs.items()}


def as_loaded(model: Any, rows: int, tokens: int, repeats: int, clock: str, prompt: int) -> float:
    """The median ratio of generate on a model as transformers loads it, over our loop on it with grouped attention.

    Of the steps alone: what a run of one token takes, which is reading the prompt, is taken off both.
    """
    ratios = []
    for _ in range(repeats + 1):
        times = []
        for ours in (False, True):
            model.set_attn_implementation("sdpa")
            if ours:
                use_grouped(model)
            fn: dict[str, Any] = {"custom_generate": as_custom_generate()} if ours else {}
            ends = []
            for most in (1, tokens):
                config, inputs = task(model, rows, most, prompt)
                start = CLOCKS[clock]()
                model.generate(**inputs, generation_config=config, **fn)
                ends.append(CLOCKS[clock]() - start)
            times.append(ends[1] - ends[0])
        ratios.append(times[0] / times[1])
    model.set_attn_implementation("sdpa")
    return statistics.median(ratios[1:])


def as_drawn(rows: int, vocabulary: int, repeats: int, clock: str) -> float:
    """The median ratio of PyTorch's draw of a token a row, by a random number for each token, over one number a row."""
    chances = torch.softmax(torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(rows)), dim=-1)
    ways: dict[str, Callable[[], torch.Tensor]] = {
        "multinomial": lambda: torch.multinomial(chances, num_samples=1),
        "inverse_cdf": lambda: inverse_cdf(chances, torch.rand(rows, 1, dtype=torch.float64)),
    }
    taken = time_in_turns(ways, repeats, clock, 10)
    return median_ratio(taken["multinomial"], taken["inverse_cdf"])


def main(argv: list[str] | None = None) -> None:
    """Run the comparison and print the ratios."""
    parser = make_parser(__doc__, repeats=15, threads=1, clock="wall")
    parser.add_argument("--model", help="also time a model from this folder, with its tokenizer")
    parser.add_argument("--dtype", default="bfloat16", help="dtype of --model (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=64, help="new tokens a run (default: %(default)s)")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)

    subjects: dict[str, tuple[Any, MakeWatcher]] = {"tiny": (tiny_model(), lambda prompt: Idle())}
    if options.model:
        model = AutoModelForCausalLM.from_pretrained(options.model, dtype=options.dtype).eval()
        model.to("cuda" if torch.cuda.is_available() else "cpu")
        subjects["model"] = (model, watchers_for(options.model))
    ratios = {
        f"drawn_b{rows}_v{size}": round(as_drawn(rows, size, options.repeats, options.clock), 4)
        for rows, size in ((128, 970), (1, 151_936), (16, 151_936))
    }
    for name, (model, make_watcher) in subjects.items():
        for rows in (1, 32):
            found = compare(model, make_watcher, rows, options.tokens, options.repeats, options.clock)
            ratios.update({f"{name}_b{rows}_{arm}": round(ratio, 4) for arm, ratio in found.items()})
    if options.model and model.device.type == "cpu" and model.config._attn_implementation == "sdpa":
        for rows, prompt in ((1, 32), (1, 256), (8, 32), (8, 256)):
            ratio = as_loaded(model, rows, options.tokens, max(1, options.repeats // 3), options.clock, prompt)
            ratios[f"model_b{rows}_loaded_{prompt}"] = round(ratio, 4)
    print_figures(ratios, options.json)


def watchers_for(folder: str) -> MakeWatcher:
    """Real controllers for a model that thinks, idle watchers for one without markers."""
    from tersely.errors import MarkerError

    def idle(prompt: list[int]) -> Watcher:
        return Idle()

    try:
        return shadow_controllers(AutoTokenizer.from_pretrained(folder))
    except MarkerError as error:
        print(f"idle watchers are used: {error}", file=sys.stderr)
        return idle


if __name__ == "__main__":
    main()
