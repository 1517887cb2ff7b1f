"""Attention from papers: speed with a shared prefix, and accuracy with an evicting cache.

Shared prefix: each ratio is the time of another implementation over that of `kernels/attention.py`, in alternating
runs, so above 1 means that ours is faster. `copied` is torch's attention on a cache with a copy of the prefix in each
row; `view` reads the one prefix row by row through a view, and the suffixes separately, as prefix caching does. Both
group the query heads that share a key, as ours does. One layer, with the heads of Qwen2.5-0.5B.

With --sample, milliseconds of a whole decoding step of `sample`, with its watchers, and MiB of the cache's keys and
values at the end: with a copy of the prompt in each row, and with the prompt kept once. Prompts are random tokens.

With --model, retaining heads are trained on texts that the model writes for problems of the split `fit`. Then a cache
that evicts is evaluated on problems of `test`: how many greedy answers are correct, and how many tokens they take.
`heads` keeps the units with the highest scores and the newest 5/12; `random` scores at random and keeps the newest
5/12, too; `newest` keeps only the newest; `rkv` evicts as R-KV does, with a buffer of 16 within the budget, and
`rkv_importance` the same by importance alone. A batch contains problems with similar lengths under the full cache, and
its budget is a share of their mean length, prompts included. `agree` counts answers equal to those with the full cache.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise, product
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from gateway import widen
from measuring import CLOCKS, answer_all, make_parser, median_ratio, print_figures, time_in_turns
from torch import Tensor

from tersely.controller.engines.transformers import model_runner
from tersely.kernels.attention import attend_with_prefix, in_flash, merge
from tersely.kernels.research.retaining import RKV, RetainingHeads, Scorer, load_heads, retaining, save_heads
from tersely.kernels.research.retaining_fit import TARGETS, TrainingText, collect, fit
from tersely.models import as_cache, find_cache, get_model_path

HEADS, KV_HEADS, DIM, SUFFIX = 14, 2, 64, 64
SHARES = (75, 50, 25)
CHUNK = 32
SLACK = 2  # limit of output, in multiples of the batch's longest full-cache answer; longer output is repetition

BUFFER = 16  # of R-KV, whose 128 would be more than the smallest cache

MakeScorer = Callable[[Tensor], Scorer]
"""From the mask of a batch of prompts, [rows, length]."""


class Limits(NamedTuple):
    """Units per key-value head of a batch, and new tokens per row."""

    budget: int
    max_new_tokens: int


ChooseLimits = Callable[[Sequence[int]], Limits]
"""From the indices of a batch's problems."""
Trained = tuple[RetainingHeads, dict[str, float]]


def compare(rows: int, prefix: int, dtype: torch.dtype, repeats: int, clock: str) -> dict[str, float]:
    """Median ratios of both other implementations on one set of tensors."""
    query = torch.randn(rows, HEADS, 1, DIM).to(dtype)
    sizes = ((1, prefix), (1, prefix), (rows, SUFFIX), (rows, SUFFIX))
    held = [torch.randn(count, KV_HEADS, size, DIM).to(dtype) for count, size in sizes]
    shared, own = (held[0], held[1]), (held[2], held[3])
    views = [part.expand(rows, -1, -1, -1) for part in shared]
    keys, values = (torch.cat([view, part], dim=2) for view, part in zip(views, own, strict=True))
    packed = query.reshape(rows, KV_HEADS, HEADS // KV_HEADS, DIM)

    def ours() -> Tensor:
        return attend_with_prefix(packed, shared, own).reshape(query.shape)

    def copied() -> Tensor:
        return torch.nn.functional.scaled_dot_product_attention(packed, keys, values).reshape(query.shape)

    def view() -> Tensor:
        parts = [in_flash(packed, held[0], held[1], None, DIM**-0.5) for held in (views, own)]
        outputs, totals = zip(*parts, strict=True)
        return merge(outputs, totals).to(dtype).reshape(query.shape)

    ways: dict[str, Callable[[], Tensor]] = {"ours": ours, "copied": copied, "view": view}
    made = [way().float() for way in ways.values()]
    if max(float((one - made[0]).abs().max()) for one in made) > (1e-5 if dtype is torch.float32 else 2e-2):
        raise SystemExit("the implementations disagree, so times cannot be compared")
    taken = time_in_turns(ways, repeats + 1, clock)
    return {name: median_ratio(taken[name][1:], taken["ours"][1:]) for name in ("copied", "view")}


class Steps:
    """Times the decoding steps of samples of one prompt."""

    def __init__(self, model: str) -> None:
        from tersely.controller.engines.transformers.engine import load_engine
        from tersely.controller.options import GenerationOptions
        from tersely.controller.session import Session

        self.engine = load_engine(model)
        config = self.engine.model.config
        self.engine.model.generation_config.eos_token_id = config.vocab_size  # no sample ends by itself
        self.session, self.options = Session(self.engine), GenerationOptions(preset="off")
        self.starts: list[tuple[int, float]] = []  # rows and time of each forward pass
        self.bytes, self.now = 0, time.perf_counter
        self.engine.model.register_forward_pre_hook(self._note, with_kwargs=True)

    def _note(self, module: Any, args: Any, kwargs: Any) -> None:
        self.starts.append((len(kwargs["input_ids"]), self.now()))
        held = [part for layer in find_cache(kwargs)[1].layers if layer.is_initialized for part in vars(layer).values()]
        parts = [part for one in held for part in (one if isinstance(one, tuple) else (one,))]
        sizes = {p.data_ptr(): p.untyped_storage().nbytes() for p in parts if isinstance(p, Tensor)}
        self.bytes = sum(sizes.values())

    def time(self, rows: int, prompt: Sequence[int], tokens: int, clock: str) -> tuple[list[float], float]:
        """Seconds of each step with all rows, and the bytes of the cache in the last one."""
        from tersely.controller.sampling import SampleWatcher
        from tersely.controller.sampling.rules import Majority

        self.now, vote = CLOCKS[clock], Majority().start_vote(rows)
        branches = vote.start_samples()
        prepared = self.session.prepare(["1+1?"] * len(branches), self.options)
        watchers = [SampleWatcher(vote, number, self.session, one) for number, one in enumerate(prepared)]
        asked = [
            watcher.wrap(replace(one.request, prompt_ids=tuple(prompt), max_new_tokens=tokens))
            for watcher, one in zip(watchers, prepared, strict=True)
        ]
        self.starts.clear()
        self.engine.generate(asked, replace(self.options.sampling, temperature=1.0, seed=1))
        steps = [after - at for (count, at), (_, after) in pairwise(self.starts) if count == rows]
        return steps, self.bytes


def time_steps(model: str, options: argparse.Namespace) -> dict[str, float]:
    """The figures of --sample for one model."""
    steps, figures = Steps(model), dict[str, float]()
    pays = {"copied": lambda *size: False, "shared": lambda *size: True}
    for prefix, rows in product(options.prefixes, (8, 16, 32)):
        prompt = torch.randint(10, steps.engine.model.config.vocab_size - 10, (prefix,)).tolist()
        taken: dict[str, list[float]] = {name: [] for name in pays}
        for turn in range(options.turns + 1):
            for name in pays if turn % 2 else reversed(pays):
                with mock.patch.object(model_runner, "prefix_pays", pays[name]):
                    seconds, size = steps.time(rows, prompt, options.tokens, options.clock)
                taken[name] += seconds if turn else []
                figures[f"k{rows}_p{prefix}_{name}_mib"] = size / 2**20
        medians = {name: statistics.median(seconds) for name, seconds in taken.items()}
        figures |= {f"k{rows}_p{prefix}_{name}_ms": 1000 * one for name, one in medians.items()}
        figures[f"k{rows}_p{prefix}_saved"] = 1 - medians["shared"] / medians["copied"]
        print(f"{rows} rows, prompt {prefix}: {figures[f'k{rows}_p{prefix}_saved']:.0%}", file=sys.stderr)
    return figures


class Answers:
    """Greedy answers of a model to problems, with any cache."""

    def __init__(self, model: str, limit: int, seed: int, effort: str, max_new_tokens: int, batch: int) -> None:
        from tersely.controller.engines.transformers.engine import load_engine
        from tersely.controller.options import GenerationOptions
        from tersely.controller.session import Session
        from tersely.evaluation.tasks.questions import load

        self.engine = load_engine(model)
        self.session = Session(self.engine)
        self.options = GenerationOptions(preset="off", effort=effort, max_new_tokens=max_new_tokens)
        self.max_new_tokens, self.size = max_new_tokens, batch
        self.questions = load("tiny", "test", limit, seed)
        self.rows = self.session.prepare([q.problem for q in self.questions], self.options)
        self.prompts = [row.request.prompt_ids for row in self.rows]

    def texts(self, count: int, seed: int) -> list[list[int]]:
        """Sampled texts of the model for problems of the split `fit`, prompts included."""
        from tersely.evaluation.runner import SessionRunner
        from tersely.evaluation.tasks.questions import load

        questions = load("tiny", "fit", count, seed)
        made = answer_all(SessionRunner(self.engine), questions, self.options, seed=seed, size=self.size)
        prompts = self.session.prepare([q.problem for q in questions], self.options)
        return [[*row.request.prompt_ids, *one.token_ids] for row, one in zip(prompts, made, strict=True)]

    def batch(self, numbers: Sequence[int], scorer: MakeScorer, limits: Limits, newest: bool) -> list[list[int]]:
        """Output tokens for the problems with these indices."""
        near = limits.budget if newest else None
        ids, mask = self.engine.pad([self.prompts[number] for number in numbers])
        plain: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        model, width = self.engine.model, ids.shape[1]
        way = scorer(mask)
        with retaining(model, way, limits.budget - BUFFER * isinstance(way, RKV), near) as cache:
            plain |= {**as_cache(model, cache), "prefill_chunk_size": CHUNK, "max_new_tokens": limits.max_new_tokens}
            out = model.generate(ids, attention_mask=mask, **plain)
        end = model.generation_config.eos_token_id
        rows = [row[width:].tolist() for row in out]
        return [row[: row.index(end) + 1] if end in row else row for row in rows]

    def all(
        self, order: Sequence[int], scorer: MakeScorer, choose_limits: ChooseLimits, newest: bool = False
    ) -> list[list[int]]:
        """Output tokens for all problems, batch by batch in this order."""
        made: dict[int, list[int]] = {}
        for at in range(0, len(order), self.size):
            numbers = order[at : at + self.size]
            made.update(zip(numbers, self.batch(numbers, scorer, choose_limits(numbers), newest), strict=True))
        return [made[number] for number in range(len(order))]

    def answers(self, made: Sequence[Sequence[int]]) -> list[str]:
        """The answers in the output."""
        from tersely.controller.text.reasoning_parser import split_reasoning

        session = self.session
        return [
            split_reasoning(ids, session.codec, session.markers, row.rendered.state).answer
            for ids, row in zip(made, self.rows, strict=True)
        ]


def make_random_scorer(kv_heads: int) -> MakeScorer:
    """Random scores, the same for batches of the same size."""

    def scorer(mask: Tensor) -> Scorer:
        chance = torch.Generator().manual_seed(len(mask))
        return lambda layer, projected: torch.rand(*projected.shape[:2], kv_heads, generator=chance)

    return scorer


def explained_variance(heads: RetainingHeads, data: Sequence[TrainingText]) -> list[float]:
    """The share of the variance of the importances that the scores explain, for each layer."""
    shares = []
    for layer in range(len(data[0].projected)):
        wanted = torch.cat([text.importance[layer] for text in data])
        with torch.no_grad():
            left = torch.cat([heads(layer, text.projected[layer]) - text.importance[layer] for text in data])
        shares.append(1 - float(left.square().sum() / (wanted - wanted.mean(dim=0)).square().sum()))
    return shares


def learn(answers: Answers, target: str, texts: Sequence[list[int]], steps: int, seed: int) -> Trained:
    """Train heads on texts, a tenth of which are held out; also returns the explained variance."""
    start = time.perf_counter()
    data = [collect(answers.engine.model, text, target) for text in texts]
    held = max(1, len(data) // 10)
    heads = fit(data[held:], steps=steps, seed=seed)
    figures = {
        f"{target}_layer{i}_explained": share for i, share in enumerate(explained_variance(heads, data[:held]), 1)
    }
    return heads, figures | {f"{target}_seconds": time.perf_counter() - start}


def quality(options: argparse.Namespace) -> dict[str, float]:
    """The table: correct answers and tokens, by eviction rule and cache size."""
    answers = Answers(
        options.model, options.questions, options.seed, options.effort, options.max_new_tokens, options.batch
    )
    chance = make_random_scorer(answers.engine.model.config.num_key_value_heads)
    rkv = RKV(buffer=BUFFER)
    ways: dict[str, MakeScorer] = {
        "random": chance,
        "newest": chance,
        "rkv": lambda mask: rkv,
        "rkv_importance": lambda mask: replace(rkv, weight=1.0),
    }
    base = {"name": answers.engine.name, "fingerprint": answers.engine.fingerprint()}
    figures: dict[str, float] = {}
    texts: list[list[int]] = []
    known = [*ways, *(f"heads_{target}" for target in TARGETS)]
    chosen = options.ways.split(",") if options.ways else known
    if other := set(chosen) - set(known):
        raise SystemExit(f"--ways has {', '.join(sorted(other))}; accepted: {', '.join(known)}")
    for target in (one for one in TARGETS if f"heads_{one}" in chosen):
        with tempfile.TemporaryDirectory() as folder:  # evaluates what was saved
            place = Path(options.heads or folder) / target
            if not place.is_dir():
                texts = texts or answers.texts(options.texts, options.seed)
                heads, found = learn(answers, target, texts, options.steps, options.seed)
                figures |= found
                save_heads(heads, place, base, found)
            loaded = load_heads(place, base["fingerprint"])
        ways[f"heads_{target}"] = lambda mask, loaded=loaded: loaded  # type: ignore[misc]
    return figures | table(answers, {name: ways[name] for name in chosen}, chance)


def table(answers: Answers, ways: dict[str, MakeScorer], chance: MakeScorer) -> dict[str, float]:
    """Results with the full cache, and with each rule at each share of it."""
    from tersely.evaluation.tasks.equality import AnswerChecker, right_answers

    count = len(answers.prompts)
    full = answers.all(range(count), chance, lambda numbers: Limits(sys.maxsize, answers.max_new_tokens))
    lengths = [len(prompt) + len(out) for prompt, out in zip(answers.prompts, full, strict=True)]
    order = sorted(range(count), key=lengths.__getitem__)
    figures: dict[str, float] = {"full_held": statistics.mean(lengths)}

    def note(name: str, made: list[list[int]]) -> None:
        given = answers.answers(made)
        right = right_answers(list(zip(answers.questions, given, strict=True)), checker)
        figures[f"{name}_right"] = statistics.mean(right)
        figures[f"{name}_agree"] = statistics.mean(a == b for a, b in zip(given, answers.answers(full), strict=True))
        figures[f"{name}_tokens"] = statistics.mean(map(len, made))

    def plan(numbers: Sequence[int], share: int) -> Limits:
        longest = max(len(full[number]) for number in numbers)
        mean = statistics.mean(lengths[number] for number in numbers)
        return Limits(math.ceil(share / 100 * mean), min(answers.max_new_tokens, SLACK * longest))

    with AnswerChecker() as checker:
        note("full", full)
        for name, scorer in ways.items():
            for share in SHARES:
                made = answers.all(order, scorer, partial(plan, share=share), newest=name == "newest")
                note(f"{name}_{share}", made)
                print(f"{name} at {share} %: {figures[f'{name}_{share}_right']:.2f} correct", file=sys.stderr)
    return figures


def main(argv: list[str] | None = None) -> None:
    """Run the comparisons and print the results."""
    parser = make_parser(__doc__, repeats=15, threads=1, clock="wall")
    parser.add_argument(
        "--model", help="also train and evaluate retaining heads on this model, such as tersely-tiny-small"
    )
    parser.add_argument("--sample", help="also time steps of `sample` with this model")
    parser.add_argument("--times", type=int, default=1, help="widen it so often, with random weights (--sample)")
    parser.add_argument(
        "--prefixes", type=int, nargs="+", default=(128, 1024, 4000), help="tokens of a prompt (default: %(default)s)"
    )
    parser.add_argument("--tokens", type=int, default=64, help="tokens of each sample (default: %(default)s)")
    parser.add_argument("--turns", type=int, default=2, help="turns of --sample (default: %(default)s)")
    parser.add_argument("--questions", type=int, default=100, help="problems to evaluate (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=25, help="problems decoded at a time (default: %(default)s)")
    parser.add_argument("--texts", type=int, default=120, help="training texts (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=400, help="training steps (default: %(default)s)")
    parser.add_argument("--effort", default="normal", help="effort of all answers (default: %(default)s)")
    parser.add_argument("--max-new-tokens", type=int, default=1024, help="most output tokens (default: %(default)s)")
    parser.add_argument("--ways", help="rules to evaluate, comma-separated (default: all)")
    parser.add_argument("--heads", help="folder for the heads; existing ones are reused")
    parser.add_argument(
        "--seed", type=int, default=1, help="seed of problems, texts and training (default: %(default)s)"
    )
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)

    figures: dict[str, float] = {}
    for dtype in (torch.float32, torch.bfloat16) if options.repeats else ():
        for rows, prefix in product((8, 32), (512, 2048)):
            found = compare(rows, prefix, dtype, options.repeats, options.clock)
            figures |= {f"{str(dtype)[6:]}_b{rows}_p{prefix}_{name}": ratio for name, ratio in found.items()}
    if options.sample:
        with tempfile.TemporaryDirectory() as folder:
            given = str(get_model_path(options.sample))
            figures |= time_steps(given if options.times == 1 else widen(given, options.times, folder), options)
    if options.model:
        figures |= quality(options)
    print_figures(figures, options.json, 3)


if __name__ == "__main__":
    main()
