"""Steering directions: extraction from pairs of answers, saving, and refusals."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tersely.errors import OptionError
from tersely.io import WriteError
from tersely.probes.artifact import ABOUT, NUMBERS, ArtifactError, save
from tersely.probes.research.learned import (
    MIN_PAIRS,
    Direction,
    Pair,
    SteeringError,
    extract,
)

from ...support.models import random_model
from ...support.refusals import refused

BASE = {"name": "random", "fingerprint": "ab" * 32}


def make_direction(**changes: Any) -> Direction:
    vectors = np.random.default_rng(0).normal(size=(2, 6))
    facts: dict[str, Any] = {
        "place": "ends",
        "layers": (1, 2),
        "vectors": vectors / np.linalg.norm(vectors, axis=1, keepdims=True),
        "norms": np.array([3.0, 5.0]),
        "base": BASE,
        "layer": 2,
        "strength": 0.4,
        "provenance": {"learned_from": ["aa", "bb"], "samples": 8},
        "metrics": {"agreement": [0.9, float("nan")], "size": np.float64(0.5)},
    }
    return Direction(**(facts | changes))


def pairs(count: int = MIN_PAIRS + 3, seed: int = 0) -> list[Pair]:
    rng = np.random.default_rng(seed)

    def ids(low: int, high: int) -> tuple[int, ...]:
        return tuple(rng.integers(3, 128, rng.integers(low, high)).tolist())

    # Short thinkings use other tokens than long ones, so there is a difference to find.
    return [Pair(ids(2, 6), tuple(3 + i % 20 for i in ids(4, 8)), ids(10, 20)) for _ in range(count)]


def states(model: Any, ids: tuple[int, ...], layer: int) -> np.ndarray:
    with torch.no_grad():
        hidden = model(torch.tensor([ids]), output_hidden_states=True).hidden_states[layer]
    return np.asarray(hidden[0].float())


@pytest.mark.parametrize("place", ["tokens", "ends"])
def test_the_direction_is_the_mean_difference(place: str) -> None:
    model, asked = random_model(), pairs()
    found = extract(model, asked, BASE, place)
    differences, norms = [], []
    for pair in asked:
        start, size = len(pair.prompt), min(len(pair.short), len(pair.long))
        both = [states(model, pair.prompt + thinking, 1)[start:] for thinking in (pair.short, pair.long)]
        both = [rows[:size] if place == "tokens" else rows[-1:] for rows in both]
        differences.append(both[0].mean(0) - both[1].mean(0))
        norms.append(np.linalg.norm(np.concatenate(both), axis=1).mean())
    mean = np.mean(differences, axis=0)
    assert (found.place, found.layers, found.base) == (place, (1,), BASE)
    assert (found.layer, found.strength) == (None, None)
    np.testing.assert_allclose(found.vectors[0], mean / np.linalg.norm(mean), atol=1e-5)
    np.testing.assert_allclose(found.norms, [np.mean(norms)], rtol=1e-5)
    assert found.metrics["size"][0] == pytest.approx(np.linalg.norm(mean) / np.mean(norms), rel=1e-4)
    halves = [np.mean(differences[start::2], axis=0) for start in (0, 1)]
    cosine = halves[0] @ halves[1] / np.prod([np.linalg.norm(half) for half in halves])
    assert found.metrics["agreement"][0] == pytest.approx(cosine, abs=1e-4)


def test_windows_are_equally_long() -> None:
    model, asked = random_model(), pairs()
    longer = [replace(pair, long=(*pair.long, 9, 9, 9, 9)) for pair in asked]
    assert np.array_equal(extract(model, asked, BASE, "tokens").vectors, extract(model, longer, BASE, "tokens").vectors)
    assert not np.array_equal(extract(model, asked, BASE, "ends").vectors, extract(model, longer, BASE, "ends").vectors)


def test_too_few_or_equal_pairs_are_refused() -> None:
    model, asked = random_model(), pairs()
    with refused(SteeringError, "too_few_pairs"):
        extract(model, asked[: MIN_PAIRS - 1], BASE)
    alike = [Pair(pair.prompt, pair.long, pair.long) for pair in asked]
    with pytest.raises(SteeringError) as error:
        extract(model, alike, BASE)
    assert error.value.code == "equal_pairs"
    with pytest.raises(SteeringError):
        extract(model, [replace(asked[0], short=()), *asked], BASE)


def test_the_added_vector_points_along_the_direction() -> None:
    direction = make_direction()
    np.testing.assert_allclose(direction.push(2, -0.4), -0.4 * 5 * direction.vectors[1], rtol=1e-6)
    assert not direction.push(1, 0.0).any()
    assert direction.push(1, 0.1).dtype == np.float32
    with refused(OptionError, "unknown_name"):
        direction.push(3, 0.1)
    for strength in (float("nan"), float("inf")):
        with refused(OptionError):
            direction.push(1, strength)
    assert direction.chosen() == (2, 0.4)
    assert direction.chosen(1) == (1, 0.4)
    assert direction.chosen(strength=-1.0) == (2, -1.0)
    with refused(OptionError):
        make_direction(layer=None, strength=None).chosen(1)


def test_a_saved_direction_loads_unchanged(tmp_path: Path) -> None:
    direction = make_direction()
    save(direction, tmp_path / "new" / "steering")
    assert sorted(p.name for p in (tmp_path / "new" / "steering").iterdir()) == [ABOUT, NUMBERS]
    found = Direction.load(tmp_path / "new" / "steering", BASE["fingerprint"])
    assert found == direction
    assert found.metrics == {"agreement": [0.9, None], "size": 0.5}
    assert found.learned_from == {"aa", "bb"}
    assert found.vectors.dtype == np.float32
    assert found != make_direction(strength=0.2)
    assert found != make_direction(norms=np.array([3.0, 6.0]))
    with pytest.raises(ValueError):  # noqa: PT011
        found.vectors[0, 0] = 1.0


def test_a_direction_of_another_model_is_refused(tmp_path: Path) -> None:
    save(make_direction(), tmp_path)
    with pytest.raises(ArtifactError) as error:
        Direction.load(tmp_path, "cd" * 32, "mine")
    assert error.value.code == "wrong_model"
    with pytest.raises(ArtifactError) as error:
        Direction.load(tmp_path, None)
    assert error.value.code == "unknown_model"


def rewrite(folder: Path, **changes: Any) -> None:
    """Change the facts and their digest."""
    facts = json.loads((folder / ABOUT).read_text()) | changes
    del facts["digest"]
    text = json.dumps(facts, sort_keys=True, indent=1) + "\n"
    facts["digest"] = hashlib.sha256(text.encode()).hexdigest()
    (folder / ABOUT).write_text(json.dumps(facts, sort_keys=True, indent=1) + "\n")


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "facts changed": (
        lambda f: (f / ABOUT).write_text((f / ABOUT).read_text().replace("0.4", "4.0")),
        "damaged_artifact",
    ),
    "not JSON": (lambda f: (f / ABOUT).write_text("nothing"), "damaged_artifact"),
    "a list": (lambda f: (f / ABOUT).write_text("[]"), "invalid_artifact"),
    "arrays cut": (lambda f: (f / NUMBERS).write_bytes((f / NUMBERS).read_bytes()[:-4]), "damaged_artifact"),
    "no arrays": (lambda f: (f / NUMBERS).unlink(), "unreadable_artifact"),
    "another kind": (lambda f: rewrite(f, kind="readiness"), "wrong_kind"),
    "another format": (lambda f: rewrite(f, format=99), "wrong_format"),
    "an extra key": (lambda f: rewrite(f, more=1), "invalid_artifact"),
    "an unknown place": (lambda f: rewrite(f, place="everywhere"), "invalid_artifact"),
    "a layer without a vector": (lambda f: rewrite(f, layers=[1, 2, 3]), "invalid_artifact"),
    "a best layer without a vector": (lambda f: rewrite(f, layer=7), "invalid_artifact"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_direction_is_refused(tmp_path: Path, name: str) -> None:
    save(make_direction(), tmp_path)
    damage, code = DAMAGE[name]
    damage(tmp_path)
    with pytest.raises(ArtifactError) as error:
        Direction.load(tmp_path, BASE["fingerprint"])
    assert error.value.code == code


@pytest.mark.parametrize(
    "changes",
    [
        {"vectors": np.ones((2, 6))},
        {"norms": np.array([0.0, 1.0])},
        {"norms": np.array([np.nan, 1.0])},
        {"norms": np.array([1.0])},
        {"strength": None},
        {"layer": 5},
        {"place": "everywhere"},
        {"base": {}},
        {"metrics": {"what": object()}},
    ],
)
def test_an_invalid_direction_is_refused(changes: dict[str, Any]) -> None:
    with refused(ArtifactError):
        make_direction(**changes)


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(WriteError):
        save(make_direction(), tmp_path / "file" / "steering")
