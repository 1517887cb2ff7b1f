"""Collections on disk: parts are complete or absent and are joined; incomplete or damaged ones are refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tersely.io import WriteError
from tersely.probes.records import PLAN, UNKNOWN, RecordsError, RecordStore, RecordTable, column_names, read_records
from tersely.probes.rule import FEATURES

from ...support.disk import files_no_longer_than
from ...support.planted_records import get_part_columns, planted, write_planted
from ...support.refusals import refused

PARTS = 3


@pytest.fixture(scope="module")
def records() -> RecordTable:
    return planted(13, rollouts=2, layers=(2, -1))


@pytest.fixture
def folder(records: RecordTable, tmp_path: Path) -> Path:
    return write_planted(tmp_path / "data", records, PARTS)


def same(one: RecordTable, other: RecordTable) -> bool:
    columns = one.columns.keys() == other.columns.keys() and all(
        a.dtype == (b := other[name]).dtype and np.array_equal(a, b, equal_nan=True) for name, a in one.columns.items()
    )
    return columns and (one.plan, one.texts) == (other.plan, other.texts)


def paths(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("parts", [1, 2, 5])
def test_parts_are_joined(records: RecordTable, tmp_path: Path, parts: int) -> None:
    found = read_records(write_planted(tmp_path / "data", records, parts))
    assert same(found, records)
    assert found.hash == records.hash
    assert (found.size("questions"), found.size("rollouts")) == (13, 13 * 4 * 2)
    assert set(found.columns) == set(column_names((2, -1)))
    assert found["boundaries.features"].shape == (found.size("boundaries"), len(FEATURES))
    # Pointers still lead to the rows that they were written with.
    owner = found["rollouts.question"][found["boundaries.rollout"]]
    assert [found.texts["hash"][q] for q in owner] == [records.texts["hash"][q] for q in owner]
    assert found["rollouts.question"].max() == 12


def test_the_hash_is_of_every_column(records: RecordTable) -> None:
    for name, column in records.columns.items():
        touched = column.copy()
        touched.flat[-1] += 1
        assert RecordTable(records.plan, {**records.columns, name: touched}, records.texts).hash != records.hash, name


def test_resuming_writes_missing_parts(records: RecordTable, folder: Path) -> None:
    (folder / "part-00001.safetensors").unlink()
    store = RecordStore(folder, records.plan)
    assert [store.has(number) for number in range(PARTS)] == [True, False, True]
    store.put(1, *get_part_columns(records, 1, PARTS))
    assert same(read_records(folder), records)


WRITER = """
import sys
from pathlib import Path
from tests.support.planted_records import get_part_columns, planted
from tersely.probes.records import RecordStore
records = planted(13, rollouts=2, layers=(2, -1))
store = RecordStore(Path(sys.argv[1]), records.plan)
print("ready", flush=True)
while True:
    store.put(0, *get_part_columns(records, 0, 3))
"""


def test_kill_9_leaves_parts_complete_or_absent(records: RecordTable, tmp_path: Path) -> None:
    """The writer writes one part over and over, so it is probably killed during a write."""
    folder, root = tmp_path / "data", Path(__file__).parents[3]
    command = [sys.executable, "-c", WRITER, str(folder)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), str(root))))}
    process = subprocess.Popen(command, cwd=root, env=env, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    while not (folder / "part-00000.safetensors").exists():
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    store = RecordStore(folder, records.plan)
    assert store.has(0)
    assert not store.has(1)
    for number in (1, 2):
        store.put(number, *get_part_columns(records, number, PARTS))
    assert same(read_records(folder), records)


@pytest.mark.parametrize(
    "change",
    [{"seed": 1}, {"more": 1}, {"model": "m", "tiers": ["easy"]}],
)
def test_another_plan_is_refused_and_the_data_stays(records: RecordTable, folder: Path, change: dict[str, Any]) -> None:
    before = {name: (folder / name).read_bytes() for name in paths(folder)}
    with pytest.raises(RecordsError) as error:
        RecordStore(folder, {**records.plan, **change})
    assert error.value.code == "other_plan"
    assert {name: (folder / name).read_bytes() for name in paths(folder)} == before


def test_a_larger_limit_lets_a_collection_grow(records: RecordTable, tmp_path: Path) -> None:
    plan = dict(records.plan)
    for limit, limits in ((2, [2]), (2, [2]), (5, [2, 5]), (5, [2, 5]), (None, [2, 5, None]), (None, [2, 5, None])):
        store = RecordStore(tmp_path, {**plan, "limit": limit})
        assert store.limits == limits
        store.put(0, *get_part_columns(records, 0, PARTS))
        assert read_records(tmp_path).plan["limit"] == limit
    for change in ({"limit": 5}, {"limit": None, "seed": 1}):
        with pytest.raises(RecordsError) as error:
            RecordStore(tmp_path, {**plan, **change})
        assert error.value.code == "other_plan"
    assert RecordStore(tmp_path, {**plan, "limit": None}).limits == [2, 5, None]


def test_a_plan_without_data_is_replaced(records: RecordTable, tmp_path: Path) -> None:
    RecordStore(tmp_path, {**records.plan, "layers": [99]})
    store = RecordStore(tmp_path, records.plan)
    store.put(0, *get_part_columns(records, 0, 1))
    assert same(read_records(tmp_path), records)


def test_the_next_part_number_is_free(records: RecordTable, folder: Path) -> None:
    store = RecordStore(folder, records.plan)
    assert store.parts == PARTS
    (folder / "part-00001.safetensors").unlink()
    assert not store.has(store.parts)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def rewritten(change: Callable[[dict[str, Any]], Any], metadata: bool = True) -> Callable[[Path], None]:
    def tamper(path: Path) -> None:
        from safetensors import safe_open

        columns: dict[str, Any] = load_file(path)
        with safe_open(path, "np") as file:
            texts = file.metadata()
        change(columns)
        save_file(columns, path, texts if metadata else None)

    return tamper


@pytest.mark.parametrize(
    "tamper",
    [
        cut,
        emptied,
        rewritten(lambda c: None, metadata=False),
        rewritten(lambda c: c.pop("rollouts.tier")),
        rewritten(lambda c: c["rollouts.question"].fill(90)),
        rewritten(lambda c: c["boundaries.rollout"].fill(-1)),
        rewritten(lambda c: c.update({"rollouts.right": c["rollouts.right"][:-1]})),
        rewritten(lambda c: c.update({"boundaries.state.-1": c["boundaries.state.-1"][1:]})),
    ],
    ids=["cut", "empty", "no texts", "no column", "lost question", "lost rollout", "short column", "short state"],
)
def test_a_damaged_part_is_refused(folder: Path, tamper: Callable[[Path], None]) -> None:
    tamper(folder / "part-00001.safetensors")
    with pytest.raises(RecordsError) as error:
        read_records(folder)
    assert error.value.code == "damaged_part"


def test_a_part_with_a_missing_text_is_refused(records: RecordTable, folder: Path) -> None:
    columns, texts = get_part_columns(records, 1, PARTS)
    RecordStore(folder, records.plan).put(1, columns, {**texts, "hash": texts["hash"][1:]})
    with pytest.raises(RecordsError) as error:
        read_records(folder)
    assert error.value.code == "damaged_part"


@pytest.mark.parametrize("plan", [None, b"{", b"\xff", b"[]", b'{"version": 0}', b'{"version": 2}'])
def test_a_folder_without_a_valid_plan_is_refused(folder: Path, plan: bytes | None) -> None:
    (folder / PLAN).unlink()
    if plan is not None:
        (folder / PLAN).write_bytes(plan)
    with pytest.raises(RecordsError) as error:
        read_records(folder)
    assert error.value.code == "no_collection"


def test_a_collection_without_data_is_refused(records: RecordTable, tmp_path: Path) -> None:
    RecordStore(tmp_path, records.plan)
    for folder, code in ((tmp_path, "empty_collection"), (tmp_path / "nowhere", "no_collection")):
        with pytest.raises(RecordsError) as error:
            read_records(folder)
        assert error.value.code == code


def test_a_file_in_place_of_the_folder_is_refused(records: RecordTable, tmp_path: Path) -> None:
    (tmp_path / "data").touch()
    with refused(WriteError):
        RecordStore(tmp_path / "data", records.plan)


def test_columns_that_are_not_in_the_plan_are_refused(records: RecordTable, tmp_path: Path) -> None:
    columns, texts = get_part_columns(records, 0, 1)
    store = RecordStore(tmp_path, records.plan)
    for wrong in ({**columns, "rollouts.mood": columns["rollouts.tier"]}, dict(list(columns.items())[1:])):
        with pytest.raises(ValueError):  # noqa: PT011
            store.put(0, wrong, texts)
    assert store.parts == 0


def test_a_full_disk_leaves_no_incomplete_part(records: RecordTable, folder: Path) -> None:
    (folder / "part-00002.safetensors").unlink()
    before, store = paths(folder), RecordStore(folder, records.plan)
    with files_no_longer_than(1000), refused(WriteError):
        store.put(2, *get_part_columns(records, 2, PARTS))
    assert paths(folder) == before
    store.put(2, *get_part_columns(records, 2, PARTS))
    assert same(read_records(folder), records)


def test_the_plan_is_saved_as_json(records: RecordTable, folder: Path) -> None:
    plan = json.loads((folder / PLAN).read_text(encoding="utf-8"))
    assert plan == records.plan
    assert (plan["version"], plan["layers"], plan["features"]) == (2, [2, -1], list(FEATURES))
    assert UNKNOWN == -1
