"""Depth shortcuts of the small embedded model, for tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from transformers.utils import logging

import tersely
from tersely.controller.engines.transformers.engine import TransformersEngine, load_engine
from tersely.controller.trace import GenerationResult
from tersely.controller.types import ForwardModifier
from tersely.probes.research.learned import Shortcut

PROBLEMS = ["Set a to 6 + 4. What is a?", "Compute 9 - 4 + 2."]
BASE = "tersely-tiny-small"
ALWAYS, NEVER = -float("inf"), float("inf")


@pytest.fixture(scope="module")
def engine() -> TransformersEngine:
    logging.disable_progress_bar()
    return load_engine(BASE)


def arrays(width: int, seed: int = 0, size: float = 0.0) -> dict[str, np.ndarray]:
    """A random gate, and an adapter that changes states by about `size`."""
    draw = np.random.default_rng(seed)
    return {
        "down": draw.normal(size=(8, width)),
        "down_bias": np.zeros(8),
        "up": size * draw.normal(size=(width, 8)),
        "up_bias": np.zeros(width),
        "gate_in": draw.normal(size=(4, width)),
        "gate_in_bias": np.zeros(4),
        "gate_out": draw.normal(size=4),
        "gate_out_bias": np.zeros(()),
    }


def shortcut(engine: TransformersEngine, **changes: Any) -> Shortcut:
    """A valid shortcut with some of its fields changed."""
    facts: dict[str, Any] = {
        "layer": 2,
        "layers": 4,
        "arrays": arrays(128, size=0.1),
        "base": {"name": BASE, "fingerprint": engine.fingerprint()},
        "threshold": 30.0,  # which about half of the states reach
    }
    return Shortcut(**(facts | changes))


def ask(engine: TransformersEngine, *modifiers: ForwardModifier, **options: Any) -> list[GenerationResult]:
    """Answer the problems greedily with these modifiers."""
    settings = {
        "preset": "off",
        "modifiers": modifiers,
        "temperature": 0,
        "max_new_tokens": 70,
        "probes": None,
        "prompts": PROBLEMS,
    }
    results: list[GenerationResult] = tersely.generate(engine, **{**settings, **options})
    return results


def tokens(results: Sequence[GenerationResult]) -> list[tuple[int, ...]]:
    return [result.token_ids for result in results]
