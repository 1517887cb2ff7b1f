"""Collections on disk: parts whole or absent, joined as one; what is not a whole collection is refused."""

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
from tersely.probes.features import FEATURES
from tersely.probes.fingerprint import question_hash
from tersely.probes.records import PLAN, UNKNOWN, RecordsError, RecordStore, RecordTable, column_names, read

from ...support.disk import files_no_longer_than
from ...support.planted_records import part_of, planted, write_planted

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
def test_parts_are_joined_to_what_was_there(records: RecordTable, tmp_path: Path, parts: int) -> None:
    found = read(write_planted(tmp_path / "data", records, parts))
    assert same(found, records)
    assert found.hash == records.hash
    assert (found.size("questions"), found.size("rollouts")) == (13, 13 * 4 * 2)
    assert set(found.columns) == set(column_names((2, -1)))
    assert found["boundaries.features"].shape == (found.size("boundaries"), len(FEATURES))
    # What a pointer points to is what it was written beside.
    owner = found["rollouts.question"][found["boundaries.rollout"]]
    assert [found.texts["hash"][q] for q in owner] == [records.texts["hash"][q] for q in owner]
    assert found["rollouts.question"].max() == 12


def test_the_hash_is_of_every_column(records: RecordTable) -> None:
    for name, column in records.columns.items():
        touched = column.copy()
        touched.flat[-1] += 1
        assert RecordTable(records.plan, {**records.columns, name: touched}, records.texts).hash != records.hash, name


def test_a_question_is_known_again_by_its_words_alone() -> None:
    assert question_hash("What  is\n2 + 2? ") == question_hash("What is 2 + 2?")
    assert question_hash("What is 2 + 2?") != question_hash("What is 2 +2?")


def test_going_on_writes_what_is_missing(records: RecordTable, folder: Path) -> None:
    (folder / "part-00001.safetensors").unlink()
    store = RecordStore(folder, records.plan)
    assert [store.has(number) for number in range(PARTS)] == [True, False, True]
    store.put(1, *part_of(records, 1, PARTS))
    assert same(read(folder), records)


WRITER = """
import sys
from pathlib import Path
from tests.support.planted_records import part_of, planted
from tersely.probes.records import RecordStore
records = planted(13, rollouts=2, layers=(2, -1))
store = RecordStore(Path(sys.argv[1]), records.plan)
print("ready", flush=True)
while True:
    store.put(0, *part_of(records, 0, 3))
"""


def test_kill_9_leaves_parts_whole_or_absent(records: RecordTable, tmp_path: Path) -> None:
    """The writer writes one part over and over, so that it is killed within a write as like as not."""
    folder, root = tmp_path / "data", Path(__file__).parents[3]
    command, env = [sys.executable, "-c", WRITER, str(folder)], {**os.environ, "PYTHONPATH": str(root)}
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
        store.put(number, *part_of(records, number, PARTS))
    assert same(read(folder), records)


@pytest.mark.parametrize(
    ("change", "differs"),
    [({"seed": 1}, "seed"), ({"more": 1}, "more"), ({"model": "m", "tiers": ["easy"]}, "model, tiers")],
)
def test_another_plan_is_refused_and_what_is_there_stays(
    records: RecordTable, folder: Path, change: dict[str, Any], differs: str
) -> None:
    before = {name: (folder / name).read_bytes() for name in paths(folder)}
    with pytest.raises(RecordsError, match=f"collected with another {differs}; go on with the same settings, or"):
        RecordStore(folder, {**records.plan, **change})
    assert {name: (folder / name).read_bytes() for name in paths(folder)} == before


def test_a_plan_that_nothing_was_collected_by_binds_nobody(records: RecordTable, tmp_path: Path) -> None:
    RecordStore(tmp_path, {**records.plan, "layers": [99]})
    store = RecordStore(tmp_path, records.plan)
    store.put(0, *part_of(records, 0, 1))
    assert same(read(tmp_path), records)


def test_the_next_part_takes_no_place_that_is_taken(records: RecordTable, folder: Path) -> None:
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
    ("tamper", "says"),
    [
        (cut, "is not a whole part of a collection"),
        (emptied, "is not a whole part of a collection"),
        (rewritten(lambda c: None, metadata=False), "is not a whole part of a collection"),
        (rewritten(lambda c: c.pop("rollouts.tier")), "is not a whole part of a collection"),
        (rewritten(lambda c: c["rollouts.question"].fill(90)), "rollouts point to questions that are not there"),
        (rewritten(lambda c: c["boundaries.rollout"].fill(-1)), "boundaries point to rollouts that are not there"),
        (
            rewritten(lambda c: c.update({"rollouts.right": c["rollouts.right"][:-1]})),
            "columns of rollouts have different lengths",
        ),
        (
            rewritten(lambda c: c.update({"boundaries.state.-1": c["boundaries.state.-1"][1:]})),
            "columns of boundaries have different lengths",
        ),
    ],
)
def test_a_part_that_is_not_whole_is_refused(folder: Path, tamper: Callable[[Path], None], says: str) -> None:
    path = folder / "part-00001.safetensors"
    tamper(path)
    with pytest.raises(RecordsError, match=f"part-00001.safetensors.*{says}.*; delete it and collect again"):
        read(folder)


def test_texts_that_are_not_one_a_question_are_refused(records: RecordTable, folder: Path) -> None:
    columns, texts = part_of(records, 1, PARTS)
    RecordStore(folder, records.plan).put(1, columns, {**texts, "hash": texts["hash"][1:]})
    with pytest.raises(RecordsError, match=r"part-00001\.safetensors: .* have different lengths; delete it"):
        read(folder)


@pytest.mark.parametrize(
    ("plan", "says"),
    [
        (None, "plan.json cannot be read: .*collect anew, or give the folder of a collection"),
        (b"{", "plan.json cannot be read"),
        (b"\xff", "plan.json cannot be read"),
        (b"[]", "not the plan of a collection of version 2; collect anew"),
        (b'{"version": 0}', "not the plan of a collection of version 2; collect anew"),
        (b'{"version": 2}', "not the plan of a collection of version 2; collect anew"),
    ],
)
def test_a_folder_without_a_plan_is_no_collection(folder: Path, plan: bytes | None, says: str) -> None:
    (folder / PLAN).unlink()
    if plan is not None:
        (folder / PLAN).write_bytes(plan)
    with pytest.raises(RecordsError, match=says):
        read(folder)


def test_a_collection_without_data_says_so(records: RecordTable, tmp_path: Path) -> None:
    RecordStore(tmp_path, records.plan)
    with pytest.raises(RecordsError, match="holds no data yet; run the collection to its end, or for longer"):
        read(tmp_path)
    with pytest.raises(RecordsError, match="cannot be read"):
        read(tmp_path / "nowhere")


def test_a_file_is_no_folder(records: RecordTable, tmp_path: Path) -> None:
    (tmp_path / "data").touch()
    with pytest.raises(WriteError, match=r"data cannot be written: .*; choose another place"):
        RecordStore(tmp_path / "data", records.plan)


def test_columns_that_were_not_planned_are_a_mistake(records: RecordTable, tmp_path: Path) -> None:
    columns, texts = part_of(records, 0, 1)
    store = RecordStore(tmp_path, records.plan)
    for wrong in ({**columns, "rollouts.mood": columns["rollouts.tier"]}, dict(list(columns.items())[1:])):
        with pytest.raises(ValueError, match="columns that are not as planned"):
            store.put(0, wrong, texts)
    assert store.parts == 0


def test_a_full_disk_leaves_nothing_of_a_part(records: RecordTable, folder: Path) -> None:
    (folder / "part-00002.safetensors").unlink()
    before, store = paths(folder), RecordStore(folder, records.plan)
    with files_no_longer_than(1000), pytest.raises(WriteError, match=r"part-00002\.safetensors cannot be written"):
        store.put(2, *part_of(records, 2, PARTS))
    assert paths(folder) == before
    store.put(2, *part_of(records, 2, PARTS))
    assert same(read(folder), records)


def test_the_plan_is_readable_and_has_what_it_was_given(records: RecordTable, folder: Path) -> None:
    plan = json.loads((folder / PLAN).read_text(encoding="utf-8"))
    assert plan == records.plan
    assert (plan["version"], plan["layers"], plan["features"]) == (2, [2, -1], list(FEATURES))
    assert UNKNOWN == -1
