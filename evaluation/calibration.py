"""How well stated confidence agrees with being right."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import OptionError
from .stats import auroc


def reliability(confidences: Sequence[float], rights: Sequence[bool], bins: int = 10) -> dict[str, Any]:
    """The `n`, `ece`, `auroc` and `bins` of confidences within 0..1; AUROC is None if all are right or all wrong.

    Bins are of equal width, and each has its mean confidence, its accuracy and its `n`; empty ones are left out. The
    expected calibration error (Naeini et al. 2015) is the mean distance of the two, weighted by `n`.
    """
    stated, right = np.asarray(confidences, np.float64), np.asarray(rights, np.float64)
    if stated.shape != right.shape or not stated.size:
        raise OptionError(f"{stated.size} confidences for {right.size} answers; accepted: one for each, at least one")
    if not ((stated >= 0) & (stated <= 1)).all():
        raise OptionError(f"confidences go from {stated.min():g} to {stated.max():g}; accepted: 0 to 1")
    places = np.minimum((stated * bins).astype(int), bins - 1)
    found = [
        {"confidence": float(stated[mine].mean()), "accuracy": float(right[mine].mean()), "n": int(mine.sum())}
        for mine in (places == place for place in np.unique(places))
    ]
    order = auroc(stated, right > 0)
    return {
        "n": len(stated),
        "ece": sum(b["n"] * abs(b["confidence"] - b["accuracy"]) for b in found) / len(stated),
        "auroc": None if math.isnan(order) else order,
        "bins": found,
    }
