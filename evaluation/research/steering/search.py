"""Which layer and strength to steer with, and whether it is the direction that shortens or only its size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ....controller.options import GenerationOptions
from ....controller.policies.research.steer import Steer
from ....probes.research.steering import Direction
from ...bench.arms import Arm
from ...bench.compare import summary
from ...bench.records import ArmRecords
from ...bench.run import Bench, run_arm

MARGIN = 0.01
"""Accuracy that steering may cost where it is chosen."""
STRENGTHS: Mapping[str, tuple[float, ...]] = {"tokens": (0.02, 0.05, 0.1, 0.2), "ends": (0.1, 0.2, 0.4, 0.8)}
"""By place; at the ends of thoughts, states lie much farther apart, and nothing is computed that could be disturbed."""
_FEW_LAYERS = 8

SHORTENS = "the direction shortens: +a is shorter, -a is longer"
COSTLY = "the direction shortens, but it costs accuracy beyond the margin"
MAGNITUDE = "driven by magnitude: both signs change the length the same way, so the direction is not usable"
BACKWARDS = "the direction does not shorten: +a is longer"
ONE_SIDED = "one-sided: +a is shorter, but it is not shown that -a is longer; ask more questions"
NOTHING = "it is not shown that +a changes the length; ask more questions, or steer elsewhere"


@dataclass(frozen=True, slots=True)
class TriedDirection:
    """One way of steering on the questions of the search: mean tokens of an answer, and the share of right ones."""

    layer: int
    strength: float
    tokens: float
    accuracy: float


def default_layers(blocks: int) -> tuple[int, ...]:
    """The middle third of the layers between so many blocks; all of them where there are few."""
    if blocks <= _FEW_LAYERS:
        return tuple(range(1, blocks))
    return tuple(range(-(-blocks // 3), 2 * blocks // 3 + 1))


def search(
    bench: Bench, direction: Direction, layers: Sequence[int], strengths: Sequence[float], common: GenerationOptions
) -> list[TriedDirection]:
    """Try every layer with every strength; the first entry is no steering, by the same controller."""
    tried = [_tried(0, 0.0, run_arm(bench, _arm("dev", direction, layers[0], 0.0, common)))]
    for layer in layers:
        for strength in strengths:
            arm = _arm("dev", direction, layer, strength, common)
            tried.append(_tried(layer, strength, run_arm(bench, arm)))
    return tried


def cheapest(tried: Sequence[TriedDirection]) -> TriedDirection | None:
    """The shortest that costs no more accuracy than `MARGIN`, if any is shorter than no steering."""
    base = tried[0]
    fit = [t for t in tried[1:] if t.accuracy >= base.accuracy - MARGIN and t.tokens < base.tokens]
    return min(fit, key=lambda t: t.tokens, default=None)


def prove(bench: Bench, direction: Direction, layer: int, strength: float, common: GenerationOptions) -> dict[str, Any]:
    """Steer both ways on questions that nothing was chosen on: {base, plus, minus: see `compare.summary`, verdict}."""
    base, plus, minus = (
        run_arm(bench, _arm("proof", direction, layer, signed, common)) for signed in (0.0, strength, -strength)
    )
    both = {"plus": plus, "minus": minus}
    found = {name: summary(records, base, bench.seed) for name, records in both.items()}
    tokens = found["plus"]["delta_total_ci"], found["minus"]["delta_total_ci"]
    word = verdict(*tokens, found["plus"]["delta_accuracy_ci"])
    return {"base": summary(base, None, bench.seed), **found, "verdict": word}


def verdict(plus: Sequence[float], minus: Sequence[float], accuracy: Sequence[float]) -> str:
    """What the intervals say, each [low, high]: of the changes in tokens, and of that in accuracy by +a."""
    mine, other = ((low > 0) - (high < 0) for low, high in (plus, minus))
    if not mine:
        return NOTHING
    if mine == other:
        return MAGNITUDE
    if mine > 0:
        return BACKWARDS
    if accuracy[1] < -MARGIN:
        return COSTLY
    return SHORTENS if other else ONE_SIDED


def _arm(part: str, direction: Direction, layer: int, strength: float, common: GenerationOptions) -> Arm:
    policy = Steer(direction=direction, layer=layer, strength=strength)
    return Arm(f"{part} layer {layer} strength {strength:+g}", replace(common, preset=None, policies=(policy,)))


def _tried(layer: int, strength: float, records: ArmRecords) -> TriedDirection:
    return TriedDirection(layer, strength, records.total(), float(records.means("right").mean()))
