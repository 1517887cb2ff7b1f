"""The shortest and the longest right answer to each question, of those that a model itself gives."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from ....controller.options import GenerationOptions
from ....controller.text.thoughts import ThinkingState
from ....controller.text.tokenizer_adapter import TokenizerAdapter
from ....probes.research.steering import Pair
from ...bench.arms import Arm
from ...bench.run import Bench, piece_name

CONTRAST = 1.25
"""The longest thinking over the shortest, below which the two differ in little but chance."""

Ids = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class SampledThinking:
    """Pairs, the share of right answers among all, and the mean tokens of the short and the long thinkings of pairs."""

    pairs: tuple[Pair, ...]
    accuracy: float
    short: float
    long: float


def sample(bench: Bench, options: GenerationOptions, place: str) -> SampledThinking:
    """Answer every question `bench.rollouts` times, uncontrolled, and pair what is right; place: see `Pair`."""
    session, rights = bench.answerer.session, 0
    closing = len(session.codec.encode(session.markers.close))
    right: dict[int, list[Ids]] = defaultdict(list)
    for rollout, number, indices in bench.units():
        piece = piece_name(bench, Arm("sample", options), rollout, number, indices)
        for index, row, ids in zip(indices, piece["rows"], piece["ids"], strict=True):
            rights += row["right"]
            # An answer that was found within the thinking leaves that without an end to compare.
            if row["right"] and row["answer_tokens"]:
                right[index].append(tuple(ids[: row["thinking"] - closing]))
        bench.advance("sampling", len(indices))
    pairs, lengths = [], []
    for index, thinkings in sorted(right.items()):
        short, long = min(thinkings, key=len), max(thinkings, key=len)
        prompt = session.prepare([bench.questions[index].problem], options)[0].rendered.ids
        if (pair := _pair(prompt, short, long, place, session.codec)) is not None:
            pairs.append(pair)
            lengths.append((len(short), len(long)))
    means = np.mean(lengths or [(0, 0)], axis=0)
    return SampledThinking(
        tuple(pairs), rights / (len(bench.questions) * bench.rollouts), float(means[0]), float(means[1])
    )


def _pair(prompt: Ids, short: Ids, long: Ids, place: str, codec: TokenizerAdapter) -> Pair | None:
    """The pair as it is compared; None where the two are too much alike."""
    if place == "tokens":
        return Pair(prompt, short, long) if short and len(long) >= CONTRAST * len(short) else None
    mine, theirs = ends(short, codec), ends(long, codec)
    if not mine or len(theirs) <= len(mine):
        return None
    # Where the short one went on to its end and the long one, after as many thoughts, did not.
    return Pair(prompt, short[: mine[-1]], long[: theirs[len(mine) - 1]])


def ends(ids: Ids, codec: TokenizerAdapter) -> list[int]:
    """After how many tokens each thought of a thinking ends."""
    thinking, found = ThinkingState(codec), []
    for token in ids:
        thinking.add(token)
        if thinking.boundary == "thought":
            found.append(len(thinking))
    return found
