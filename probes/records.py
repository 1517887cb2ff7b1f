"""Collected data: questions, rollouts and thought boundaries in columns, a folder of safetensors parts and one plan.

Each part is written whole or not at all, so that a collection may be stopped anywhere and gone on with. Labels are -1
where nobody knows the right answer: live traffic has none, and is learnt from by agreement.
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

from ..errors import TerselyError
from ..io import WriteError, write
from .features import FEATURES

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

rollouts: right and the answer of thinking on; entropy is the mean over sampled tokens, in nats. boundaries: `right` and
`same` (as the final answer) are of the answer that is given if the thinking ends there, sampled as all else; `stated`
and `said` are the latest answer stated and the one of the greedy trial, numbered within the rollout, -1 for none;
`confidence` and `trial` are the trial's, and what it cost, in tokens.
"""
_REAL = ("entropy", "confidence", "features")
_TEXTS = ("hash", "problem", "kind")
_POINTERS = {"rollouts": ("question", "questions"), "boundaries": ("rollout", "rollouts")}


class RecordsError(TerselyError, ValueError):
    """Collected data cannot be used: no such folder, another run's, torn or tampered with."""


@dataclass(frozen=True)
class RecordTable:
    """Collected data in memory.

    plan: what was collected, from whom. columns: by `table.column`; row numbers point within these tables. texts: hash,
    problem and kind of each question.
    """

    plan: Mapping[str, Any]
    columns: Mapping[str, Array]
    texts: Mapping[str, Sequence[str]]

    def __getitem__(self, name: str) -> Array:
        return self.columns[name]

    def size(self, table: str) -> int:
        """Rows of a table."""
        return len(self.columns[f"{table}.{TABLES[table][0]}"])

    @property
    def hash(self) -> str:
        """A hash of all columns, by which an artifact says what it was made from."""
        digest = hashlib.sha256()
        for name in sorted(self.columns):
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(self.columns[name]).tobytes())
        return digest.hexdigest()[:16]


def column_names(layers: Sequence[int]) -> list[str]:
    """All columns of a collection with these hidden layers."""
    names = [f"{table}.{column}" for table, columns in TABLES.items() for column in columns]
    return names + [f"{table}.state.{layer}" for table in ("questions", "boundaries") for layer in layers]


class RecordRows:
    """Rows of a table on their way to columns."""

    def __init__(self, table: str) -> None:
        self.table = table
        self._rows: list[tuple[Any, ...]] = []

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, *values: Any) -> None:
        """Append a row, in the order of `TABLES`."""
        self._rows.append(values)

    def columns(self) -> dict[str, Array]:
        """The columns by `table.column`: what is real as float32, counts as int32."""
        made = {}
        for place, name in enumerate(TABLES[self.table]):
            dtype = np.float32 if name in _REAL else np.int32
            made[f"{self.table}.{name}"] = np.array([row[place] for row in self._rows], dtype=dtype)
        if "features" in TABLES[self.table]:
            made[f"{self.table}.features"] = made[f"{self.table}.features"].reshape(-1, len(FEATURES))
        return made


class RecordStore:
    """A folder that takes parts; raises RecordsError if it holds another plan's, WriteError if there can be none."""

    def __init__(self, folder: Path, plan: Mapping[str, Any]) -> None:
        self.folder = folder
        self.plan = json.loads(json.dumps({"version": VERSION, **plan}))
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise WriteError(f"{folder} cannot be written: {error.strerror}; choose another place") from None
        known = folder / PLAN
        if known.exists() and self.parts:  # a plan that nothing was collected by binds nobody
            if (there := _read_plan(known)) != self.plan:
                differ = sorted(k for k in {*there, *self.plan} if there.get(k) != self.plan.get(k))
                raise RecordsError(
                    f"{folder} holds data collected with another {', '.join(differ)}; "
                    "go on with the same settings, or choose another folder"
                )
        else:
            write(known, json.dumps(self.plan, indent=2) + "\n")

    def has(self, number: int) -> bool:
        """Whether a part is there."""
        return self._path(number).exists()

    @property
    def parts(self) -> int:
        """One more than the number of the last part there is."""
        paths = self.folder.glob("part-*.safetensors")
        return 1 + max((int(path.stem.removeprefix("part-")) for path in paths), default=-1)

    def put(self, number: int, columns: Mapping[str, Array], texts: Mapping[str, Sequence[str]]) -> None:
        """Write a part whole or not at all."""
        from safetensors.numpy import save

        missing = set(column_names(self.plan["layers"])) ^ set(columns)
        if missing:
            raise ValueError(f"columns that are not as planned: {sorted(missing)}")
        arrays = {name: np.ascontiguousarray(array) for name, array in columns.items()}
        write(self._path(number), save(arrays, {name: json.dumps(list(texts[name])) for name in _TEXTS}))

    def _path(self, number: int) -> Path:
        return self.folder / f"part-{number:05}.safetensors"


def _read_plan(path: Path) -> dict[str, Any]:
    try:
        plan = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RecordsError(
            f"{path} cannot be read: {error}; collect anew, or give the folder of a collection"
        ) from None
    if not isinstance(plan, dict) or plan.get("version") != VERSION or "layers" not in plan:
        raise RecordsError(f"{path} is not the plan of a collection of version {VERSION}; collect anew")
    return plan


def read(folder: Path) -> RecordTable:
    """Read a collection; raises RecordsError."""
    plan = _read_plan(folder / PLAN)
    paths = sorted(folder.glob("part-*.safetensors"))
    if not paths:
        raise RecordsError(f"{folder} holds no data yet; run the collection to its end, or for longer")
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
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np") as file:
            metadata = file.metadata() or {}
            columns = {name: file.get_tensor(name) for name in names}
        texts = {name: json.loads(metadata[name]) for name in _TEXTS}
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise RecordsError(
            f"{path} is not a whole part of a collection: {error}; delete it and collect again"
        ) from None
    for table in TABLES:
        sizes = {len(column) for name, column in columns.items() if name.startswith(f"{table}.")}
        if len(sizes | {len(text) for text in texts.values() if table == "questions"}) > 1:
            raise RecordsError(f"{path}: columns of {table} have different lengths; delete it and collect again")
    for table, (pointer, target) in _POINTERS.items():
        rows = columns[f"{table}.{pointer}"]
        if len(rows) and not 0 <= rows.min() <= rows.max() < len(columns[f"{target}.{TABLES[target][0]}"]):
            raise RecordsError(f"{path}: {table} point to {target} that are not there; delete it and collect again")
    return columns, texts
