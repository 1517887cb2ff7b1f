"""What was found, as text: each number beside what it is to be compared with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def as_text(report: Mapping[str, Any]) -> str:
    """The whole report, a line a fact."""
    return "\n".join([*_found(report), *_searched(report), *_proved(report)])


def _found(report: Mapping[str, Any]) -> Iterator[str]:
    sampled, direction = report["sampled"], report["direction"]
    yield (
        f"{report['model']}: {sampled['questions']} questions, {sampled['samples']} answers each, "
        f"{sampled['accuracy']:.1%} right"
    )
    yield (
        f"{sampled['pairs']} pairs of right answers, with {sampled['short']:.0f} and {sampled['long']:.0f} tokens of "
        "thinking on average"
    )
    yield from (f"note: {note}" for note in report["notes"])
    yield f"directions from {_PLACES[report['place']]}; cosine of those of two halves of the pairs, and their size:"
    for layer, agreement, size in zip(direction["layers"], direction["agreement"], direction["size"], strict=True):
        yield f"  layer {layer}: {agreement:.3f}, {size:.3f} of the states' norm"


_PLACES = {"tokens": "all tokens of the thinking", "ends": "the ends of thoughts"}


def _searched(report: Mapping[str, Any]) -> Iterator[str]:
    found, chosen = report["search"], report["chosen"]
    base, *tried = found["tried"]
    yield f"search, {found['n']} questions; unsteered {base['tokens']:.1f} tokens, {base['accuracy']:.1%} right"
    for one in tried:
        mark = "*" if one == chosen else " "
        yield (
            f"{mark} layer {one['layer']}, strength {one['strength']:+g}: {one['tokens']:.1f} tokens, "
            f"{one['accuracy']:.1%} right"
        )
    if chosen is None:
        yield f"nothing is shorter without losing more than {found['margin']:.0%} of accuracy: not usable"


def _proved(report: Mapping[str, Any]) -> Iterator[str]:
    proof = report["proof"]
    if proof is None:
        return
    base, strength = proof["base"], report["chosen"]["strength"]
    tokens, accuracy = base["tokens"]["total"], base["accuracy"]
    yield f"proof, {base['n']} other questions; unsteered {tokens:.1f} tokens, {accuracy:.1%} right"
    for name, signed in (("plus", strength), ("minus", -strength)):
        arm = proof[name]
        low, high = arm["delta_total_ci"]
        worst, best = arm["delta_accuracy_ci"]
        yield (
            f"  strength {signed:+g}: {arm['delta_total']:+.1f} tokens [{low:+.1f}, {high:+.1f}], accuracy "
            f"{100 * arm['delta_accuracy']:+.1f} points [{100 * worst:+.1f}, {100 * best:+.1f}]"
        )
    yield f"verdict: {proof['verdict']}"
