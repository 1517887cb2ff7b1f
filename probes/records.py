"""Collected data: questions, rollouts and thought boundaries in columns, as a folder of safetensors parts and a plan.

Parts are written whole, so a collection can resume. Labels are -1 if the right answer is unknown, as in live traffic.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from ..errors import TerselyError
from ..io import make_folder, write
from .rule import FEATURES

Array = NDArray[Any]
VERSION = 2
UNKNOWN = -1
PLAN = "plan.json"
TABLES: Mapping[str, tuple[str, ...]] = {
    "questions": ("level", "words"),
    "rollouts": ("question", "tier", "number", "right", "thinking", "answer", "entropy", "finished"),
    "boundaries": ("rollout", "end", "features", "right", "same", "stated", "said", "confidence", "trial"),
}
"""Columns of each table; `questions` and `boundaries` also have `state.LAYER` for each layer of the plan.

Rollouts: `entropy` is the mean over sampled tokens, in nats. Boundaries: `right` and `same` (as the final answer) are
of the answer sampled when the thinking ends there. `stated` is the latest answer that the thinking states, and `said`
that of the greedy trial, both numbered within the rollout, -1 for none. `confidence` is the trial's, `trial` its cost
in tokens.
"""
_REAL = ("entropy", "confidence", "features")
_TEXTS = ("hash", "problem", "kind")
_POINTERS = {"rollouts": ("question", "questions"), "boundaries": ("rollout", "rollouts")}


class RecordsError(TerselyError, ValueError, code="invalid_records"):
    """Collected data cannot be used: missing, of another run, incomplete or damaged."""


@dataclass(frozen=True)
class RecordTable:
    """Collected data in memory: columns by `table.column`, and hash, problem and kind of each question as texts."""

    plan: Mapping[str, Any]
    columns: Mapping[str, Array]
    texts: Mapping[str, Sequence[str]]

    def __getitem__(self, name: str) -> Array:
        return self.columns[name]

    def size(self, table: str) -> int:
        return len(self.columns[f"{table}.{TABLES[table][0]}"])

    @property
    def hash(self) -> str:
        """Hash of all columns, recorded in artifacts made from this data."""
        digest = hashlib.sha256()
        for name in sorted(self.columns):
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(self.columns[name]).tobytes())
        return digest.hexdigest()[:16]


def column_names(layers: Sequence[int]) -> list[str]:
    """List all columns of a collection with these hidden layers."""
    names = [f"{table}.{column}" for table, columns in TABLES.items() for column in columns]
    return names + [f"{table}.state.{layer}" for table in ("questions", "boundaries") for layer in layers]


class RecordRows:
    """Collects rows of a table and turns them into columns."""

    def __init__(self, table: str) -> None:
        self.table = table
        self._rows: list[tuple[Any, ...]] = []

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, *values: Any) -> None:
        self._rows.append(values)

    def columns(self) -> dict[str, Array]:
        """Return the columns by `table.column`, as float32 or int32."""
        columns = {}
        for i, name in enumerate(TABLES[self.table]):
            dtype = np.float32 if name in _REAL else np.int32
            columns[f"{self.table}.{name}"] = np.array([row[i] for row in self._rows], dtype=dtype)
        if "features" in TABLES[self.table]:
            columns[f"{self.table}.features"] = columns[f"{self.table}.features"].reshape(-1, len(FEATURES))
        return columns


class RecordStore:
    """A folder of parts; raises RecordsError if it holds data of another plan, WriteError if it cannot be created.

    A plan that differs in a larger `limit` alone (None is the largest) lets the collection grow: `limits` are those
    up to which questions were drawn, one after the other.
    """

    def __init__(self, folder: Path, plan: Mapping[str, Any]) -> None:
        self.folder = folder
        self.plan = json.loads(json.dumps({"version": VERSION, **plan}))
        make_folder(folder)
        path = folder / PLAN
        stored = _read_plan(path) if path.exists() else {}
        if stored and self.parts:  # a plan without data is replaced
            self._continue(stored)
        write(path, json.dumps(self.plan, indent=2) + "\n")

    @property
    def limits(self) -> list[int | None]:
        """Limits of the parts of a collection that has grown; the last is that of the plan."""
        return [*self.plan.get("grown_from", []), self.plan.get("limit")]

    def _continue(self, stored: dict[str, Any]) -> None:
        """Go on with a stored plan: the same, or one with a smaller limit."""
        before = stored.pop("grown_from", [])
        old, new = stored.get("limit"), self.plan.get("limit")
        grows = old is not None and (new is None or new > old)
        differ = {key for key in {*stored, *self.plan} if stored.get(key) != self.plan.get(key)}
        if differ - ({"limit"} if grows else set()):
            raise RecordsError(
                f"{self.folder} holds data collected with another {', '.join(sorted(differ))}; use the same settings "
                "to resume, a larger limit to add questions, or choose another folder",
                code="other_plan",
            )
        if before or grows:
            self.plan["grown_from"] = [*before, old] if grows else before

    def has(self, number: int) -> bool:
        return self._path(number).exists()

    @property
    def parts(self) -> int:
        """The number after that of the last part."""
        paths = self.folder.glob("part-*.safetensors")
        return 1 + max((int(path.stem.removeprefix("part-")) for path in paths), default=-1)

    def put(self, number: int, columns: Mapping[str, Array], texts: Mapping[str, Sequence[str]]) -> None:
        """Write a part completely or not at all."""
        missing = set(column_names(self.plan["layers"])) ^ set(columns)
        if missing:
            raise ValueError(f"columns are missing or not in the plan: {sorted(missing)}")
        arrays = {name: np.ascontiguousarray(array) for name, array in columns.items()}
        write(self._path(number), save(arrays, {name: json.dumps(list(texts[name])) for name in _TEXTS}))

    def _path(self, number: int) -> Path:
        return self.folder / f"part-{number:05}.safetensors"


def _read_plan(path: Path) -> dict[str, Any]:
    try:
        plan = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RecordsError(
            f"{path} cannot be read: {error}; give a folder of `tersely collect`, or log files by name",
            code="no_collection",
        ) from None
    if not isinstance(plan, dict) or plan.get("version") != VERSION or "layers" not in plan:
        raise RecordsError(
            f"{path} is not the plan of a collection of version {VERSION}; collect again, into a new folder",
            code="no_collection",
        )
    return plan


def read_records(folder: Path) -> RecordTable:
    """Read a collection; raises RecordsError."""
    plan = _read_plan(folder / PLAN)
    paths = sorted(folder.glob("part-*.safetensors"))
    if not paths:
        raise RecordsError(f"{folder} holds no data yet; let the collection run for longer", code="empty_collection")
    parts: list[dict[str, Array]] = []
    texts: dict[str, list[str]] = {name: [] for name in _TEXTS}
    for path in paths:
        columns, words = _read_part(path, column_names(plan["layers"]))
        sizes = {table: sum(len(p[f"{table}.{TABLES[table][0]}"]) for p in parts) for table in TABLES}
        for table, (pointer, target) in _POINTERS.items():
            columns[f"{table}.{pointer}"] = columns[f"{table}.{pointer}"] + sizes[target]
        parts.append(columns)
        for name in _TEXTS:
            texts[name] += words[name]
    columns = {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}
    return RecordTable(plan, columns, texts)


def _read_part(path: Path, names: Sequence[str]) -> tuple[dict[str, Array], dict[str, list[str]]]:
    try:
        with safe_open(path, "np") as file:
            metadata = file.metadata() or {}
            columns = {name: file.get_tensor(name) for name in names}
        texts = {name: json.loads(metadata[name]) for name in _TEXTS}
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise RecordsError(
            f"{path} is incomplete or damaged: {error}; delete it and collect again", code="damaged_part"
        ) from None
    for table in TABLES:
        sizes = {len(column) for name, column in columns.items() if name.startswith(f"{table}.")}
        if len(sizes | {len(text) for text in texts.values() if table == "questions"}) > 1:
            raise RecordsError(
                f"{path}: columns of {table} have different lengths; delete it and collect again", code="damaged_part"
            )
    for table, (pointer, target) in _POINTERS.items():
        rows = columns[f"{table}.{pointer}"]
        if len(rows) and not 0 <= rows.min() <= rows.max() < len(columns[f"{target}.{TABLES[target][0]}"]):
            raise RecordsError(
                f"{path}: {table} refer to missing {target}; delete it and collect again", code="damaged_part"
            )
    return columns, texts
