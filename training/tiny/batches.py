"""Batches for the embedded models: problems -> traces -> token ids with per-token loss weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING

import torch

from ...evaluation.tasks.problems import KINDS, Problem, draw, stream
from ...evaluation.tasks.programs import Work, run
from .traces import CAREFUL, CHOICE, DIRECT, FAST, FINAL, PLAIN, READ, RESPONSES, SLIP, VERDICT

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

WEIGHTS = {
    PLAIN: 0.3,
    SLIP: 0.0,
    READ: 1.0,
    FAST: 1.5,
    CAREFUL: 0.7,
    VERDICT: 2.0,
    CHOICE: 2.0,
    FINAL: 1.0,
    DIRECT: 4.0,
}
MIX = {"normal": 0.28, "easy": 0.24, "hard": 0.09, "none": 0.20, "hint": 0.09, "cut": 0.10}
WARM_MIX = {"easy": 0.40, "none": 0.25, "normal": 0.15, "hard": 0.10, "cut": 0.10}
CAPS = (20, 50, 99, 250, 600, 999)


@dataclass(frozen=True, slots=True)
class Batch:
    """Right-padded ids [B, T], loss weights [B, T] and trace classes [B, T] (-1 where there is no loss)."""

    ids: torch.Tensor
    weights: torch.Tensor
    classes: torch.Tensor

    @property
    def tokens(self) -> int:
        """Padded size."""
        return self.ids.numel()


def drills(seed: int, progress: list[float]) -> Iterator[Problem]:
    """Problems of few steps with numbers of every size, at first without any padding: what the others are made of."""
    rng = Random(f"drill:{seed}")
    while True:
        kind = rng.choice(KINDS)
        work = Work(rng.choice((1, 1, 2, 2, 3)), rng.choice(CAPS), rng.choice((0.1, 0.4)))
        padding = rng.random() * min(1.0, progress[0] / 0.2)
        text, program, labels = draw(kind, work, rng, padding)
        yield Problem("drill", text, str(run(program)[-1]), 0, kind, program, labels)


def encode(tokenizer: PreTrainedTokenizerFast, problem: Problem, mode: str, rng: Random) -> tuple[list[int], list[int]]:
    """Token ids of prompt and response, and the trace class of each (-1 for the prompt)."""
    effort = {"easy": "easy", "hard": "hard", "none": "none"}.get(mode, "normal")
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": problem.problem}],
        tokenize=False,
        add_generation_prompt=True,
        reasoning_effort=effort,
    )
    trace = RESPONSES[mode](problem, rng)
    trace.add("<|im_end|>")
    ends, classes, at = [], [], 0
    for text, tag in trace.pieces:
        at += len(text)
        ends.append(at)
        classes.append(tag)
    head = tokenizer.backend_tokenizer.encode(prompt, add_special_tokens=False).ids
    body = tokenizer.backend_tokenizer.encode(trace.text, add_special_tokens=False)
    tags, k = [], 0
    for start, _ in body.offsets:
        while start >= ends[k]:
            k += 1
        tags.append(classes[k])
    return head + body.ids, [-1] * len(head) + tags


def batches(tokenizer: PreTrainedTokenizerFast, seed: int, size: int, progress: list[float]) -> Iterator[Batch]:
    """Endless batches of about `size` padded tokens.

    `progress[0]` (share of training done) moves the mixture from short traces over drills to the full family.
    """
    rng = Random(f"batches:{seed}")
    full, drill = stream("train", 1000 + seed), drills(seed, progress)
    light = stream("train", 2000 + seed, levels=(1, 1, 1, 2))
    while True:
        pool = []
        warm = progress[0] < 0.25
        mix = WARM_MIX if warm else MIX
        for _ in range(384):
            mode = rng.choices(list(mix), list(mix.values()))[0]
            if mode == "none" and rng.random() < 0.75 and progress[0] > 0.1:
                problem = next(light)
            else:
                problem = next(drill if rng.random() < (1.0 - 3 * progress[0] if warm else 0.1) else full)
            pool.append(encode(tokenizer, problem, mode, rng))
        pool.sort(key=lambda item: len(item[0]))
        groups: list[list[tuple[list[int], list[int]]]] = []
        group: list[tuple[list[int], list[int]]] = []
        for item in pool:
            if group and len(item[0]) * (len(group) + 1) > size:
                groups.append(group)
                group = []
            group.append(item)
        groups.append(group)
        rng.shuffle(groups)
        yield from (_collate(g) for g in groups)


def _collate(group: list[tuple[list[int], list[int]]]) -> Batch:
    width = max(len(ids) for ids, _ in group)
    ids = torch.zeros(len(group), width, dtype=torch.long)
    classes = torch.full((len(group), width), -1, dtype=torch.long)
    for row, (tokens, tags) in enumerate(group):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        classes[row, : len(tags)] = torch.tensor(tags)
    table = torch.tensor([WEIGHTS[c] for c in range(len(WEIGHTS))] + [0.0])
    return Batch(ids, table[classes], classes)
