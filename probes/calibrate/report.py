"""The report of a calibration as text: figures beside their controls, and what follows from them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..io import DIFFICULTY, READINESS


def as_text(report: Mapping[str, Any]) -> str:
    """The whole report, a line a fact."""
    return "\n".join(
        [
            str(report["model"]),
            "",
            *_difficulty(report[DIFFICULTY]),
            "",
            *_readiness(report[READINESS], report["alpha"]),
        ]
    )


def _difficulty(found: Mapping[str, Any]) -> Iterator[str]:
    if "skipped" in found:
        yield f"difficulty: not learnt, {found['skipped']}"
        return
    yield f"difficulty, from hidden layer {found['layer']}, learnt from {found['learned from']} questions"
    for name, row in found.items():
        if not isinstance(row, Mapping) or "probe" not in row:
            continue
        probe, controls = row["probe"], {k: row[k]["auroc"] for k in ("length", "words")}
        best = max(controls, key=lambda k: controls[k])
        yield (
            f"  {name}: AUROC {probe['auroc']:.3f} [{probe['low']:.3f}, {probe['high']:.3f}], "
            f"Brier {probe['brier']:.3f}, ECE {probe['ece']:.3f} (n = {probe['n']}, {probe['share']:.0%} do)"
        )
        shuffled = row["shuffled"]["auroc"]
        said = ", ".join(f"{k} {v:.3f}" for k, v in controls.items())
        word = "adds" if probe["low"] > controls[best] else "adds nothing certain"
        yield f"    controls: {said}, shuffled labels {shuffled:.3f}; the probe {word} to {best} alone"
    curve = found["entropy curve"]
    levels = ", ".join(f"{v['difficulty']:g}: {v['entropy']:.3f}" for v in curve["levels"])
    shape = "U-shaped" if curve["u-shaped"] else "not surely U-shaped"
    yield f"  mean entropy by difficulty, in nats, is {shape} ({levels})"
    names = {"choice": "effort auto", "choice alone": "its tiers alone"}
    for choice, name in ((found[key], name) for key, name in names.items() if key in found):
        shares = ", ".join(f"{k} {v:.0%}" for k, v in choice["shares"].items() if v)
        yield (
            f"  {name} on {choice['n']} unseen questions: {choice['saved']:.1%} of the tokens saved, accuracy "
            f"{choice['accuracy change']:+.3f} (standard error {choice['standard error']:.3f}); {shares}"
        )


def _readiness(found: Mapping[str, Any], alpha: float) -> Iterator[str]:
    seen = f"{found['questions']} unseen questions with {found['boundaries']} boundaries"
    yield f"readiness, from hidden layer {found['layer']}, on {seen}"
    names = {"free": "free evidence", "trials": "with trials where undecided", "confidence": "raw trial confidence"}
    for key, name in names.items():
        if (row := found.get(key)) is None:
            continue
        at = "never stops" if row["threshold"] is None else f"stops from {row['threshold']:.4f}"
        yield (
            f"  {name}: AUROC {row['quality']['auroc']:.3f}, ECE {row['quality']['ece']:.3f}; {at}: saves "
            f"{row['saved']:.1%} net, harms {row['harm']:.1%} (asked: {alpha:.1%}); best in hindsight "
            f"{row['oracle']:.1%}; {row['asked']:.1f} trials a question"
        )
    for key in ("free", "trials"):
        again = found[key]["resampled"]
        yield (
            f"  {again['draws']} calibrations of {again['n']} questions, {names[key]}: {again['exceeded']:.1%} harm "
            f"more than asked; they save {again['efficiency']:.0%} of what the best threshold in hindsight saves"
        )
    for key, text in found["certificates"].items():
        yield f"  certificate, {names[key]}: {text}"
    if "confidence" not in found:
        return
    best = max(("free", "trials"), key=lambda k: found[k]["saved"])
    gain = found[best]["saved"] - found["confidence"]["saved"]
    yield f"  the learnt probe saves {gain * 100:+.1f} points of tokens against raw confidence, net of all overhead"
