"""Steering vectors (arXiv 2506.15647): pairs of short and long thinking, the search for layer and strength."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ...controller.engines.transformers.research.steering import Steer
from ...controller.options import GenerationOptions
from ...controller.text.thoughts import ThinkingState
from ...controller.text.tokenizer_adapter import TokenizerAdapter
from ...probes.research.learned import Direction, Pair
from ..bench.arms import Arm, Bench, run_arm, run_batch
from ..bench.compare import summarize

CONTRAST = 1.25  # least ratio of the longest to the shortest thinking; below it they differ mostly by chance
MARGIN = 0.01  # largest acceptable accuracy loss
STRENGTHS: Mapping[str, tuple[float, ...]] = {"tokens": (0.02, 0.05, 0.1, 0.2), "ends": (0.1, 0.2, 0.4, 0.8)}
"""Strengths to try by place; at the ends of thoughts, states differ more and steering disturbs less."""
_FEW_LAYERS = 8

SHORTENS = "the direction shortens: +a is shorter, -a is longer"
COSTLY = "the direction shortens, but it costs accuracy beyond the margin"
MAGNITUDE = "driven by magnitude: both signs change the length the same way, so the direction is not usable"
BACKWARDS = "the direction does not shorten: +a is longer"
ONE_SIDED = "one-sided: +a is shorter, but it is not shown that -a is longer; use more questions"
NOTHING = "it is not shown that +a changes the length; use more questions, or steer elsewhere"

Ids = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class SampledThinking:
    """Pairs of thinking, the accuracy of all samples, and the mean tokens of the pairs' short and long side."""

    pairs: tuple[Pair, ...]
    accuracy: float
    short: float
    long: float


def sample_pairs(bench: Bench, options: GenerationOptions, place: str) -> SampledThinking:
    """Answer each question `bench.rollouts` times without control, and pair correct answers; for `place` see `Pair`."""
    session, correct = bench.runner.session, 0
    closing = len(session.codec.encode(session.markers.close))
    thinkings: dict[int, list[Ids]] = defaultdict(list)
    for rollout, number, indices in bench.batches():
        piece = run_batch(bench, Arm("sample", options), rollout, number, indices)
        for index, row, ids in zip(indices, piece["rows"], piece["ids"], strict=True):
            correct += row["right"]
            # If the answer was found within the thinking, the thinking has no end to compare.
            if row["right"] and row["answer_tokens"]:
                thinkings[index].append(tuple(ids[: row["thinking"] - closing]))
        bench.advance("sampling", len(indices))
    pairs, lengths = [], []
    for index, samples in sorted(thinkings.items()):
        short, long = min(samples, key=len), max(samples, key=len)
        prompt = session.prepare([bench.questions[index].problem], options)[0].rendered.ids
        if (pair := _make_pair(prompt, short, long, place, session.codec)) is not None:
            pairs.append(pair)
            lengths.append((len(short), len(long)))
    short_mean, long_mean = np.mean(lengths or [(0, 0)], axis=0)
    accuracy = correct / (len(bench.questions) * bench.rollouts)
    return SampledThinking(tuple(pairs), accuracy, float(short_mean), float(long_mean))


def _make_pair(prompt: Ids, short: Ids, long: Ids, place: str, codec: TokenizerAdapter) -> Pair | None:
    """The pair to compare; None if the two are too similar."""
    if place == "tokens":
        return Pair(prompt, short, long) if short and len(long) >= CONTRAST * len(short) else None
    short_ends, long_ends = find_ends(short, codec), find_ends(long, codec)
    if not short_ends or len(long_ends) <= len(short_ends):
        return None
    # After the same number of thoughts, the short one ended and the long one did not.
    return Pair(prompt, short[: short_ends[-1]], long[: long_ends[len(short_ends) - 1]])


def find_ends(ids: Ids, codec: TokenizerAdapter) -> list[int]:
    """The ends of thoughts, in tokens."""
    thinking, ends = ThinkingState(codec), []
    for token in ids:
        thinking.add(token)
        if thinking.boundary == "thought":
            ends.append(len(thinking))
    return ends


@dataclass(frozen=True, slots=True)
class TriedDirection:
    """One layer and strength on the search questions: mean tokens, and accuracy."""

    layer: int
    strength: float
    tokens: float
    accuracy: float


def default_layers(blocks: int) -> tuple[int, ...]:
    """The middle third of the layers of a model with this many blocks; all inner layers if there are few."""
    if blocks <= _FEW_LAYERS:
        return tuple(range(1, blocks))
    return tuple(range(-(-blocks // 3), 2 * blocks // 3 + 1))


def search(
    bench: Bench, direction: Direction, layers: Sequence[int], strengths: Sequence[float], common: GenerationOptions
) -> list[TriedDirection]:
    """Try every layer with every strength; the first entry is strength 0, with the same controller."""

    def run(layer: int, strength: float) -> TriedDirection:
        records = run_arm(bench, _make_arm("dev", direction, layer, strength, common))
        return TriedDirection(layer, strength, records.mean("total"), records.mean("right"))

    base = replace(run(layers[0], 0.0), layer=0)
    return [base, *(run(layer, strength) for layer in layers for strength in strengths)]


def choose(tried: Sequence[TriedDirection]) -> TriedDirection | None:
    """The shortest that loses at most `MARGIN` of accuracy; None if none is shorter than no steering."""
    base = tried[0]
    fit = [t for t in tried[1:] if t.accuracy >= base.accuracy - MARGIN and t.tokens < base.tokens]
    return min(fit, key=lambda t: t.tokens, default=None)


def validate(
    bench: Bench, direction: Direction, layer: int, strength: float, common: GenerationOptions
) -> dict[str, Any]:
    """Steer in both directions on held-out questions: {base, plus, minus: see `compare.summarize`, verdict}."""
    base, plus, minus = (
        run_arm(bench, _make_arm("proof", direction, layer, signed, common)) for signed in (0.0, strength, -strength)
    )
    sides = {name: summarize(arm, base, bench.seed) for name, arm in (("plus", plus), ("minus", minus))}
    tokens = sides["plus"]["delta_total_ci"], sides["minus"]["delta_total_ci"]
    word = judge(*tokens, sides["plus"]["delta_accuracy_ci"])
    return {"base": summarize(base, None, bench.seed), **sides, "verdict": word}


def judge(plus: Sequence[float], minus: Sequence[float], accuracy: Sequence[float]) -> str:
    """The verdict from intervals [low, high]: the changes in tokens by +a and -a, and that in accuracy by +a."""
    plus_sign, minus_sign = ((low > 0) - (high < 0) for low, high in (plus, minus))
    if not plus_sign:
        return NOTHING
    if plus_sign == minus_sign:
        return MAGNITUDE
    if plus_sign > 0:
        return BACKWARDS
    if accuracy[1] < -MARGIN:
        return COSTLY
    return SHORTENS if minus_sign else ONE_SIDED


def _make_arm(part: str, direction: Direction, layer: int, strength: float, common: GenerationOptions) -> Arm:
    modifier = Steer(direction=direction, layer=layer, strength=strength)
    return Arm(f"{part} layer {layer} strength {strength:+g}", replace(common, preset=None, modifiers=(modifier,)))
