"""Two operations of the shelf: attention over a shared prefix by time, and a cache that evicts by the answers.

Shared prefix: each ratio is the time of another way over that of `shared_prefix_attention`, timed in turn, so above 1
means that ours is faster. `copied` is torch's own attention on a cache with a copy of the prefix in each row; `view`
reads the one prefix row by row through a view, and its suffix beside it, which is what prefix caching gives. Both have
the query heads that share a key as queries of one head, as ours has. One layer, heads as Qwen2.5-0.5B has them.

With --model, retaining heads are learnt on texts that the model writes to problems of the split `fit`, and a cache that
evicts is judged on problems of `test`: how many greedy answers are right, and how many tokens they take. `heads` keeps
what the heads score highest, beside the newest, which are 5 of 12; `random` scores by chance and keeps those too, and
`newest` keeps nothing but the newest. A batch holds problems of about the same length with the full cache; its budget
is a share of their mean length, prompts included. `agree`: answers that are those of the full cache.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tersely.kernels.research.retaining import RetainingHeads, Scorer, retaining
from tersely.kernels.research.retaining_files import load_heads, save_heads
from tersely.kernels.research.retaining_fit import TARGETS, explained, fit, lesson
from tersely.kernels.research.shared_prefix import in_flash, merge, shared_prefix_attention

CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
HEADS, KV_HEADS, DIM, SUFFIX = 14, 2, 64, 64
SHARES = (75, 50, 25)
BATCH = 25
CHUNK = 32
SLACK = 2  # so many times the longest answer of a batch with the full cache: what goes on for longer runs in circles

MakeScorer = Callable[[Tensor], Scorer]
"""From the mask of a batch of prompts, [rows, length]."""


class Room(NamedTuple):
    """What a batch may hold, in units a key-value head, and how many new tokens each row may take."""

    budget: int
    most: int


Plan = Callable[[Sequence[int]], Room]
"""From the numbers of a batch's problems."""
Learnt = tuple[RetainingHeads, dict[str, float]]


def compare(rows: int, prefix: int, dtype: torch.dtype, repeats: int, clock: Callable[[], float]) -> dict[str, float]:
    """Median ratios of both other ways on one set of tensors."""
    query = torch.randn(rows, HEADS, 1, DIM).to(dtype)
    shared = [torch.randn(KV_HEADS, prefix, DIM).to(dtype) for _ in range(2)]
    own = [torch.randn(rows, KV_HEADS, SUFFIX, DIM).to(dtype) for _ in range(2)]
    views = [part.expand(rows, *part.shape) for part in shared]
    keys, values = (torch.cat([view, part], dim=2) for view, part in zip(views, own, strict=True))
    packed = query.reshape(rows, KV_HEADS, HEADS // KV_HEADS, DIM)

    def ours() -> Tensor:
        return shared_prefix_attention(query, *shared, *own)

    def copied() -> Tensor:
        return torch.nn.functional.scaled_dot_product_attention(packed, keys, values).reshape(query.shape)

    def view() -> Tensor:
        parts = [in_flash(packed, held[0], held[1], None, DIM**-0.5) for held in (views, own)]
        outputs, totals = zip(*parts, strict=True)
        return merge(outputs, totals).to(dtype).reshape(query.shape)

    ways: dict[str, Callable[[], Tensor]] = {"ours": ours, "copied": copied, "view": view}
    made = [way().float() for way in ways.values()]
    if max(float((one - made[0]).abs().max()) for one in made) > (1e-5 if dtype is torch.float32 else 2e-2):
        raise SystemExit("the ways differ, so that their times would mean nothing")
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(repeats + 2):
        for name in list(ways) if turn % 2 else reversed(ways):
            start = clock()
            ways[name]()
            times[name].append(clock() - start)
    return {
        name: statistics.median(a / b for a, b in zip(times[name][2:], times["ours"][2:], strict=True))
        for name in ("copied", "view")
    }


class Answers:
    """Greedy answers of a model to problems, under any cache, and what is right in them."""

    def __init__(self, model: str, limit: int, seed: int, effort: str, most: int) -> None:
        from tersely.controller.engines.transformers.engine import load_engine
        from tersely.controller.options import GenerationOptions
        from tersely.controller.session import Session
        from tersely.evaluation.tasks.questions import load

        self.engine = load_engine(model)
        self.session = Session(self.engine)
        self.options, self.most = GenerationOptions(preset="off", effort=effort, max_new_tokens=most), most
        self.questions = load("tiny", "test", limit, seed)
        self.rows = self.session.prepare([q.problem for q in self.questions], self.options)
        self.prompts = [row.request.prompt_ids for row in self.rows]

    def texts(self, count: int, seed: int) -> list[list[int]]:
        """What the model writes to problems of the split `fit`, as it samples, prompts included."""
        from tersely.evaluation.runner import SessionRunner, answer_all
        from tersely.evaluation.tasks.questions import load

        questions = load("tiny", "fit", count, seed)
        made = answer_all(SessionRunner(self.engine), questions, self.options, seed=seed, size=BATCH)
        prompts = self.session.prepare([q.problem for q in questions], self.options)
        return [[*row.request.prompt_ids, *one.token_ids] for row, one in zip(prompts, made, strict=True)]

    def batch(self, numbers: Sequence[int], scorer: MakeScorer, room: Room, newest: bool) -> list[list[int]]:
        """Tokens put out for the problems of these numbers."""
        near = room.budget if newest else None
        ids, mask = self.engine._padded([self.prompts[number] for number in numbers])
        plain: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        model, width = self.engine.model, ids.shape[1]
        with retaining(model, scorer(mask), room.budget, near) as cache:
            plain |= {"past_key_values": cache, "prefill_chunk_size": CHUNK, "max_new_tokens": room.most}
            out = model.generate(ids, attention_mask=mask, **plain)
        end = model.generation_config.eos_token_id
        rows = [row[width:].tolist() for row in out]
        return [row[: row.index(end) + 1] if end in row else row for row in rows]

    def all(self, order: Sequence[int], scorer: MakeScorer, plan: Plan, newest: bool = False) -> list[list[int]]:
        """Tokens put out for all problems, batch by batch in this order."""
        made: dict[int, list[int]] = {}
        for at in range(0, len(order), BATCH):
            numbers = order[at : at + BATCH]
            made.update(zip(numbers, self.batch(numbers, scorer, plan(numbers), newest), strict=True))
        return [made[number] for number in range(len(order))]

    def answers(self, made: Sequence[Sequence[int]]) -> list[str]:
        """The answers in what was put out."""
        from tersely.controller.text.reasoning_parser import split_reasoning

        session = self.session
        return [
            split_reasoning(ids, session.codec, session.markers, row.rendered.state).answer
            for ids, row in zip(made, self.rows, strict=True)
        ]


def at_random(kv_heads: int) -> MakeScorer:
    """Scores by chance, the same for the same batch."""

    def scorer(mask: Tensor) -> Scorer:
        chance = torch.Generator().manual_seed(len(mask))
        return lambda layer, projected: torch.rand(*projected.shape[:2], kv_heads, generator=chance)

    return scorer


def learn(answers: Answers, target: str, texts: Sequence[list[int]], steps: int, seed: int) -> Learnt:
    """Heads learnt on texts, a tenth of which are kept to see how well they explain; and the figures of that."""
    start = time.perf_counter()
    lessons = [lesson(answers.engine.model, text, target) for text in texts]
    held = max(1, len(lessons) // 10)
    heads = fit(lessons[held:], steps=steps, seed=seed)
    figures = {f"{target}_layer{i}_explained": share for i, share in enumerate(explained(heads, lessons[:held]), 1)}
    return heads, figures | {f"{target}_seconds": time.perf_counter() - start}


def quality(options: argparse.Namespace) -> dict[str, float]:
    """The table: right answers and tokens, by what is kept and how much of it."""
    answers = Answers(options.model, options.questions, options.seed, options.effort, options.most)
    chance = at_random(answers.engine.model.config.num_key_value_heads)
    ways: dict[str, MakeScorer] = {"random": chance, "newest": chance}
    base = {"name": answers.engine.name, "fingerprint": answers.engine.fingerprint()}
    figures: dict[str, float] = {}
    texts: list[list[int]] = []
    for target in TARGETS:
        with tempfile.TemporaryDirectory() as folder:  # what is judged is what was kept
            place = Path(options.heads or folder) / target
            if not place.is_dir():
                texts = texts or answers.texts(options.texts, options.seed)
                heads, found = learn(answers, target, texts, options.steps, options.seed)
                figures |= found
                save_heads(heads, place, base, found)
            loaded = load_heads(place, base["fingerprint"])
        ways[f"heads_{target}"] = lambda mask, loaded=loaded: loaded  # type: ignore[misc]
    return figures | table(answers, ways, chance)


def table(answers: Answers, ways: dict[str, MakeScorer], chance: MakeScorer) -> dict[str, float]:
    """Figures of the full cache, and of each way at each share of it."""
    from tersely.evaluation.tasks.equality import AnswerChecker, right_answers

    count = len(answers.prompts)
    full = answers.all(range(count), chance, lambda numbers: Room(sys.maxsize, answers.most))
    lengths = [len(prompt) + len(out) for prompt, out in zip(answers.prompts, full, strict=True)]
    order = sorted(range(count), key=lengths.__getitem__)
    figures: dict[str, float] = {"full_held": statistics.mean(lengths)}

    def note(name: str, made: list[list[int]]) -> None:
        given = answers.answers(made)
        right = right_answers(list(zip(answers.questions, given, strict=True)), checker)
        figures[f"{name}_right"] = statistics.mean(right)
        figures[f"{name}_agree"] = statistics.mean(a == b for a, b in zip(given, answers.answers(full), strict=True))
        figures[f"{name}_tokens"] = statistics.mean(map(len, made))

    def plan(numbers: Sequence[int], share: int) -> Room:
        longest = max(len(full[number]) for number in numbers)
        mean = statistics.mean(lengths[number] for number in numbers)
        return Room(math.ceil(share / 100 * mean), min(answers.most, SLACK * longest))

    with AnswerChecker() as checker:
        note("full", full)
        for name, scorer in ways.items():
            for share in SHARES:
                made = answers.all(order, scorer, partial(plan, share=share), newest=name == "newest")
                note(f"{name}_{share}", made)
                print(f"{name} at {share} %: {figures[f'{name}_{share}_right']:.2f} right", file=sys.stderr)
    return figures


def main(argv: list[str] | None = None) -> None:
    """Run the comparisons and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", help="also learn and judge retaining heads on this model, such as tersely-tiny-small"
    )
    parser.add_argument("--questions", type=int, default=100, help="problems to judge on (default: %(default)s)")
    parser.add_argument("--texts", type=int, default=120, help="texts to learn from (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=400, help="steps of learning (default: %(default)s)")
    parser.add_argument("--effort", default="normal", help="effort of all answers (default: %(default)s)")
    parser.add_argument("--most", type=int, default=1024, help="most new tokens (default: %(default)s)")
    parser.add_argument("--heads", help="keep the heads in this folder, or take those that are there")
    parser.add_argument("--seed", type=int, default=1, help="of problems, texts and learning (default: %(default)s)")
    parser.add_argument(
        "--repeats", type=int, default=15, help="turns of each timing, 0 for none (default: %(default)s)"
    )
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default: %(default)s)")
    parser.add_argument("--clock", choices=sorted(CLOCKS), default="wall", help="cpu helps on a loaded machine")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)

    figures: dict[str, float] = {}
    for dtype in (torch.float32, torch.bfloat16) if options.repeats else ():
        for rows, prefix in product((8, 32), (512, 2048)):
            found = compare(rows, prefix, dtype, options.repeats, CLOCKS[options.clock])
            figures |= {f"{str(dtype)[6:]}_b{rows}_p{prefix}_{name}": ratio for name, ratio in found.items()}
    if options.model:
        figures |= quality(options)
    figures = {name: round(value, 3) for name, value in figures.items()}
    if options.json:
        print(json.dumps(figures))
    else:
        for name, value in figures.items():
            print(f"{name:28} {value:.4g}")


if __name__ == "__main__":
    main()
