"""Configurations, recipes and checkpoint logs with anything in them: refused by an error of ours, quickly."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tersely.controller.options import ConfigError, load_config
from tersely.errors import OptionError
from tersely.io import CheckpointLog, CheckpointLogError, WriteError, append_line, cut_line, write
from tersely.models import get_model_path
from tersely.probes.artifact import ArtifactError, load, save
from tersely.probes.fingerprint import checkpoint_fingerprint
from tersely.probes.io import DIFFICULTY, READINESS, find_pretrained, load_stop_rule, load_tier_probe
from tersely.training.config import Recipe, RecipeError, read_recipe

from ..support.cpu_limit import limited

DEEP, DIGITS = "[" * 100_000, "9" * 5_000
LAUGHS = "a0: &a0 [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 9)
)


@pytest.mark.parametrize(
    "values",
    [
        {"strategy": {"easy": {"temperature": 0}}},
        {"strategy": {"easy": {"reserve": None}}},
        {"strategy": {"easy": {"thinking": "a"}}},
        {"strategy": {"easy": {"share": [1]}}},
        {"policies": {"auto_exit": {"probes": [[1]]}}},
        {"policies": {"budget": {"slack": "a"}}},
        {"policies": {"trimr": {"cues": 5}}},
        {"policies": [1]},
        {"strategy": {"easy": 5}},
        {"effort": []},
    ],
)
def test_values_of_configurations_have_types(values: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "tuned.json"
    path.write_text(json.dumps({"format": 1, **values}))
    with pytest.raises((ConfigError, OptionError)):
        load_config(path)


def test_right_values_are_taken(tmp_path: Path) -> None:
    path = tmp_path / "tuned.json"
    policies = {"budget": {"slack": 8}, "auto_exit": {"probes": None, "agree": 3}, "deer": {"cues": ["Wait", "But"]}}
    path.write_text(json.dumps({"format": 1, "policies": policies, "strategy": {"easy": {"temperature": 0.5}}}))
    assert load_config(path)["strategy"]["easy"].temperature == 0.5


@pytest.mark.parametrize("text", [DEEP, f'{{"format": {DIGITS}}}', "\x00", "[1]"])
def test_texts_that_are_no_configuration(text: str, tmp_path: Path) -> None:
    path = tmp_path / "tuned.json"
    path.write_text(text)
    with pytest.raises(ConfigError):
        load_config(path)


@pytest.mark.parametrize(
    "text",
    [
        '{"run": 5}\n',
        f"{DEEP}\n",
        '{"run": {}}\n{"key": [], "value": 1}\n',
        f'{{"run": {{}}}}\n{{"key": "a", "value": {DIGITS}}}\n',
        '{"run": {}}\n[]\n',
    ],
)
def test_texts_that_are_no_checkpoint_log(text: str, tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text(text)
    with pytest.raises(CheckpointLogError):
        CheckpointLog(path, {})


def test_a_value_that_was_changed_is_not_taken(tmp_path: Path) -> None:
    path = tmp_path / "log"
    CheckpointLog(path, {}).get_or_compute("a", lambda: {"right": 1})
    assert CheckpointLog(path, {}).completed == {"a": {"right": 1}}
    path.write_text(path.read_text().replace('"right": 1', '"right": 7'))
    with pytest.raises(CheckpointLogError):
        CheckpointLog(path, {})


def test_a_line_that_another_run_has_finished_is_not_cut(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"whole\nhal")
    seen = path.stat().st_size
    append_line(path, b"other", to_disk=True)
    cut_line(path, 6, seen)
    assert path.read_bytes() == b"whole\nhal\nother\n"
    path.write_bytes(b"whole\nhal")
    cut_line(path, 6, seen)
    assert path.read_bytes() == b"whole\n"


def test_the_name_of_a_new_file_survives_a_crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[Path] = []
    sync = os.fsync

    def note(opened: int) -> None:
        synced.append(Path(f"/proc/self/fd/{opened}").resolve())
        sync(opened)

    monkeypatch.setattr(os, "fsync", note)
    append_line(tmp_path / "log", b"one", to_disk=True)
    append_line(tmp_path / "log", b"two", to_disk=True)
    assert synced == [tmp_path / "log", tmp_path, tmp_path / "log"]


def test_a_failed_write_is_our_error_where_nothing_can_be_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "open", refuse)
    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(WriteError):
        write(tmp_path / "page.html", "x")


@pytest.mark.parametrize(
    "text",
    [
        "[" * 20_000,
        f"method: sft\nseed: {DIGITS}",
        f"{LAUGHS}method: sft\nmodel: *a8\n",
        f"{LAUGHS}method: *a8\n",
        "&a [*a]",
    ],
)
def test_hostile_recipes_are_refused_quickly(text: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with limited(10), pytest.raises(RecipeError) as caught:
        read_recipe(path, Recipe, "sft")
    assert len(str(caught.value)) < 2_000


LOADERS = {
    DIFFICULTY: load_tier_probe,
    READINESS: lambda folder, fingerprint: load_stop_rule(folder, fingerprint, None),
}


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        (DIFFICULTY, {"arrays": {}}),
        (DIFFICULTY, {"provenance": {}}),
        (DIFFICULTY, {"provenance": {"tiers": 5, "price": "a", "exits": 1}}),
        (READINESS, {"arrays": {}}),
        (READINESS, {"provenance": {}}),
        (READINESS, {"certificates": []}),
    ],
)
def test_probes_that_are_whole_and_lack_something_are_refused(kind: str, change: Any, tmp_path: Path) -> None:
    fingerprint = checkpoint_fingerprint(get_model_path("tersely-tiny-small"))
    folder = find_pretrained(fingerprint, kind)
    assert folder is not None
    assert LOADERS[kind](folder, fingerprint)
    save(replace(load(folder), **change), tmp_path)
    with pytest.raises(ArtifactError):
        LOADERS[kind](tmp_path, fingerprint)


def test_changes_of_hostile_recipes_are_refused_quickly(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(f"{LAUGHS}method: sft\n")
    with limited(10), pytest.raises(RecipeError) as caught:
        read_recipe(path, Recipe, "sft", ["a8.x=5"])
    assert len(str(caught.value)) < 2_000
