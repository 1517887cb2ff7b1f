"""Planted collections: made without a model, so what a probe should find in them is known."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tersely.probes.fingerprint import question_hash
from tersely.probes.network import Network, init_layers
from tersely.probes.records import UNKNOWN, VERSION, Array, RecordRows, RecordStore, RecordTable
from tersely.probes.rule import FEATURES, GrowingFeatures, ThoughtReading

TIERS = ("none", "easy", "normal", "hard")
ABLE = {"none": -0.3, "easy": 0.7, "normal": 2.2, "hard": 2.6}
"""The difficulty that each tier solves half the time."""
LENGTH = {"easy": 2, "normal": 4, "hard": 6}
"""The fewest thoughts of a tier."""
CLOSING, ANSWER = 3, 9
_WORDS = "shells tickets boxes lamps coins finds loses gives owns left then again how many now".split()


def features(thoughts: Iterable[ThoughtReading]) -> NDArray[np.float32]:
    """The features at the end of the last of these thoughts; see `GrowingFeatures.values`."""
    growing = GrowingFeatures()
    for thought in thoughts:
        growing.add(thought)
    return growing.values()


@dataclass(frozen=True)
class Planting:
    """Settings of a planted collection.

    Attributes:
        noise: deviation of the state around what it encodes, which is -1 or 1.
        live: as in live traffic, without labels and trials.
        solved: probability that an answer is right, in place of one that depends on the difficulty.
    """

    n: int = 400
    seed: int = 0
    noise: float = 0.5
    width: int = 8
    tiers: tuple[str, ...] = TIERS
    rollouts: int = 1
    layers: tuple[int, ...] = (-1,)
    live: bool = False
    solved: float | None = None
    model: str = "planted"
    fingerprint: str = "fe" * 32

    def plan(self) -> dict[str, Any]:
        """The plan of this collection, as JSON returns it."""
        settings = {
            "model": self.model,
            "fingerprint": self.fingerprint,
            "task": "planted",
            "split": "fit",
            "limit": self.n,
            "seed": self.seed,
            "tiers": self.tiers,
            "rollouts": self.rollouts,
            "layers": self.layers,
            "features": FEATURES,
            "closing": CLOSING,
        }
        plan: dict[str, Any] = json.loads(json.dumps({"version": VERSION, **settings}))
        return plan


def planted(n: int = 400, **settings: Any) -> RecordTable:
    """Make a collection of n questions; settings: those of `Planting`."""
    return _Planter(Planting(n, **settings)).records()


def write_planted(folder: Path, records: RecordTable, parts: int = 3) -> Path:
    """Write a collection in so many parts."""
    store = RecordStore(folder, records.plan)
    for number in range(parts):
        store.put(number, *get_part_columns(records, number, parts))
    return folder


def get_part_columns(records: RecordTable, number: int, parts: int) -> tuple[dict[str, Array], dict[str, list[str]]]:
    """Get columns and texts of one of so many parts of a collection, for `RecordStore.put`."""
    n = records.size("questions")
    edges = np.linspace(0, n, parts + 1).astype(int)
    keep = np.zeros(n, bool)
    keep[edges[number] : edges[number + 1]] = True
    masks = {"questions": keep, "rollouts": keep[records["rollouts.question"]]}
    masks["boundaries"] = masks["rollouts"][records["boundaries.rollout"]]
    columns = {name: column[masks[name.partition(".")[0]]] for name, column in records.columns.items()}
    columns["rollouts.question"] = columns["rollouts.question"] - int(edges[number])
    columns["boundaries.rollout"] = columns["boundaries.rollout"] - int(np.flatnonzero(masks["rollouts"])[0])
    return columns, {name: list(texts[edges[number] : edges[number + 1]]) for name, texts in records.texts.items()}


def keep_rows(records: RecordTable, table: str, keep: NDArray[np.bool_]) -> RecordTable:
    """Copy a collection with fewer rows of a table that nothing points to."""
    names = [name for name in records.columns if name.partition(".")[0] == table]
    return replace_columns(records, **{name.replace(".", "__", 1): records[name][keep] for name in names})


def replace_columns(records: RecordTable, **columns: Any) -> RecordTable:
    """Copy a collection with other columns, by names with __ in place of the dot."""
    new = {name.replace("__", ".", 1): column for name, column in columns.items()}
    return RecordTable(records.plan, {**records.columns, **new}, records.texts)


def linear(weights: Any, bias: Any) -> Network:
    """Make a network that computes one linear layer, [inputs, classes] and [classes]."""
    weights = np.asarray(weights, np.float64)
    w1, b1, w2, b2 = init_layers(weights, np.asarray(bias, np.float64), 0, 0)
    inputs, classes = weights.shape
    one, zero = np.ones(inputs, np.float32), np.zeros(inputs, np.float32)
    return Network(zero, one, w1, b1, w2, b2, np.float32(1), np.zeros(classes, np.float32))  # type: ignore[arg-type]


def constant(chances: Sequence[float], inputs: int) -> Network:
    """Make a network that predicts the same for every row."""
    return linear(np.zeros((inputs, len(chances))), np.log(chances))


class _Planter:
    """Makes the rows of one collection."""

    def __init__(self, planting: Planting) -> None:
        self.planting = planting
        self.rng = np.random.default_rng(planting.seed)
        direction = np.random.default_rng(99).normal(size=(2, planting.width))
        self.hard, self.ready = direction / np.linalg.norm(direction, axis=1, keepdims=True) * 2
        self.rollouts, self.boundaries = RecordRows("rollouts"), RecordRows("boundaries")
        self.states: list[Array] = []

    def records(self) -> RecordTable:
        plan, n = self.planting, self.planting.n
        difficulty = self.rng.normal(0.5, 1.2, n)
        texts = [f"{plan.seed} {i}: " + " ".join(self.rng.choice(_WORDS, self.rng.integers(8, 30))) for i in range(n)]
        for question in range(n):
            for tier in plan.tiers:
                for number in range(plan.rollouts):
                    self._rollout(question, tier, number, float(difficulty[question]))
        asked = np.outer(difficulty, self.hard) + plan.noise * self.rng.normal(size=(n, plan.width))
        columns: dict[str, Array] = {
            "questions.level": np.clip(np.round(difficulty + 3), 1, 6).astype(np.int16),
            "questions.words": np.array([len(text.split()) for text in texts], np.int32),
            **self.rollouts.columns(),
            **self.boundaries.columns(),
        }
        seen = np.array(self.states, np.float32).reshape(-1, plan.width)
        for layer in plan.layers:
            columns[f"questions.state.{layer}"] = (np.full_like(asked, np.nan) if plan.live else asked).astype("f4")
            columns[f"boundaries.state.{layer}"] = seen if layer == -1 else seen[:, ::-1].copy()
        hashes, blank = [question_hash(text) for text in texts], [""] * n
        return RecordTable(
            plan.plan(), columns, {"hash": hashes, "problem": blank if plan.live else texts, "kind": blank}
        )

    def _rollout(self, question: int, tier: str, number: int, difficulty: float) -> None:
        plan, rng = self.planting, self.rng
        solved = 1 / (1 + np.exp(-4 * (ABLE[tier] - difficulty))) if plan.solved is None else plan.solved
        right = bool(rng.random() < solved)
        size = 0 if tier == "none" else LENGTH[tier] + int(rng.integers(0, 4))
        at, label = self.rollouts, UNKNOWN if plan.live else int(right)
        place = len(at)
        ends = self._thinking(place, size, right, difficulty) if size else 0
        entropy = rng.normal(0.3 + 0.1 * abs(difficulty), 0.05)
        at.add(question, plan.tiers.index(tier), number, label, ends + 4, ANSWER, entropy, True)

    def _thinking(self, rollout: int, size: int, right: bool, difficulty: float) -> int:
        """Add the boundaries of a thinking that settles on its answer at some thought; returns its tokens."""
        plan, rng = self.planting, self.rng
        settled = int(rng.integers(0, size)) if rng.random() < 0.8 else 0
        thoughts: list[ThoughtReading] = []
        stated, end = UNKNOWN, 0
        for place in range(size):
            ready = place >= settled
            said = 0 if ready else 1 + (place // 2) % 3
            stated = said if rng.random() < 0.6 else stated
            thoughts.append(_thought(rng, ready, str(said) if stated == said else None, place))
            end += thoughts[-1].tokens
            # A thinking that ends wrong may have passed the right answer.
            now = (right and ready) or (not right and not ready and rng.random() < 0.1)
            confidence = float(np.clip(rng.normal(0.9 if ready else 0.6, 0.2), 0.05, 0.9999))
            outcome = (UNKNOWN, int(stated == 0)) if plan.live else (int(now), int(ready))
            tried = (UNKNOWN, 0.0, 0) if plan.live else (said, confidence, int(rng.integers(4, 8)))
            self.boundaries.add(rollout, end, features(thoughts), *outcome, stated, *tried)
            lean = (1 if ready else -1) * self.ready / 2 + difficulty * self.hard / 4
            self.states.append(lean + plan.noise * rng.normal(size=plan.width))
        return end


def _thought(rng: np.random.Generator, ready: bool, answer: str | None, place: int) -> ThoughtReading:
    mean = float(np.clip(rng.normal(0.25 if ready else 0.45, 0.15), 0.01, 3))
    return ThoughtReading(
        tokens=int(rng.integers(15, 41)),
        reflective=place > 0 and bool(rng.random() < 0.5),
        answer=answer,
        entropy_mean=mean,
        entropy_max=mean * float(rng.uniform(2, 4)),
        entropy_last=float(rng.uniform(0, 0.2)),
        top_min=float(np.exp(-2 * mean)),
        margin_mean=float(np.exp(-mean)),
    )
