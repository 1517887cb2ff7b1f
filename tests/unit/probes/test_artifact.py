"""Artifacts on disk: saved probes load unchanged, anything else is refused."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load as from_bytes
from safetensors.numpy import save as to_bytes

from tersely.io import WriteError
from tersely.probes import artifact as artifacts
from tersely.probes.artifact import ABOUT, NUMBERS, Artifact, ArtifactError, load, save
from tersely.probes.estimator import ProbeClassifier

from ...support.refusals import refused

BASE = {"name": "tersely-tiny-small", "fingerprint": "ab" * 32}


@pytest.fixture(scope="module")
def estimator() -> ProbeClassifier:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(90, 6))
    probe = ProbeClassifier(epochs=2).fit(rows, np.array(["easy", "normal", "hard"])[rng.integers(0, 3, 90)])
    return probe.calibrate(rows[:40], probe.predict(rows[:40]))


@pytest.fixture
def artifact(estimator: ProbeClassifier) -> Artifact:
    table = {"accuracy": np.full((3, 2), 0.5), "tokens": np.array([[100.0, 300.0]] * 3, np.float32)}
    return Artifact(
        "difficulty",
        estimator.to_network(),
        tuple(estimator.classes_.tolist()),
        layer=4,
        base=BASE,
        features=("log words",),
        provenance={"data": "0123", "task": "numbers", "split": "fit", "seed": 0, "n": 90, "tiers": ["easy", "normal"]},
        metrics={"auroc": np.float32(0.75), "nothing": float("nan"), "by tier": [0.5, 0.25]},
        certificates=[{"alpha": 0.02, "threshold": None}],
        arrays=table,
    )


@pytest.fixture
def folder(artifact: Artifact, tmp_path: Path) -> Path:
    save(artifact, tmp_path / "probe")
    return tmp_path / "probe"


def get_code(folder: Path, **options: Any) -> str:
    """The code of the error that loading a probe raises."""
    with pytest.raises(ArtifactError) as error:
        load(folder, **options)
    return error.value.code


def rewrite(folder: Path, numbers: dict[str, np.ndarray] | None = None, **about: Any) -> None:
    """Change a saved probe and its digests."""
    found = json.loads((folder / ABOUT).read_text())
    del found["digest"]
    if numbers is not None:
        (folder / NUMBERS).write_bytes(to_bytes(numbers))
        found["sha256"] = hashlib.sha256((folder / NUMBERS).read_bytes()).hexdigest()
    text = json.dumps(found | about, sort_keys=True, indent=1) + "\n"
    digest = hashlib.sha256(text.encode()).hexdigest()
    (folder / ABOUT).write_text(json.dumps(found | about | {"digest": digest}, sort_keys=True, indent=1) + "\n")


def test_a_saved_artifact_loads_unchanged(artifact: Artifact, folder: Path, estimator: ProbeClassifier) -> None:
    found = load(folder, fingerprint=BASE["fingerprint"], layer=4)
    assert found == artifact
    assert sorted(p.name for p in folder.iterdir()) == [ABOUT, NUMBERS]
    rows = np.random.default_rng(1).normal(size=(50, 6))
    assert np.array_equal(found.network.proba(rows), estimator.predict_proba(rows))
    assert found.arrays["tokens"].dtype == np.float32
    assert found.arrays["accuracy"].dtype == np.float64
    assert found.metrics == {"auroc": 0.75, "nothing": None, "by tier": [0.5, 0.25]}
    assert found.certificates == ({"alpha": 0.02, "threshold": None},)
    assert found.provenance["task"] == "numbers"


def test_any_difference_makes_another_artifact(artifact: Artifact) -> None:
    other = artifact.network.w1.copy()
    other[0, 0] += 1
    changes: list[dict[str, Any]] = [
        {"layer": 3},
        {"base": {**BASE, "name": "another"}},
        {"metrics": {}},
        {"network": replace(artifact.network, w1=other)},
        {"arrays": {}},
    ]
    assert all(replace(artifact, **change) != artifact for change in changes)


def test_a_changed_byte_anywhere_is_refused(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for name, regions in ((ABOUT, 150), (NUMBERS, 80)):
        whole = (folder / name).read_bytes()
        edges = np.linspace(0, len(whole), regions + 1).astype(int)
        places = [0, len(whole) - 1, *(int(rng.integers(a, b)) for a, b in pairwise(edges))]
        for place in places:
            (folder / name).write_bytes(
                whole[:place] + bytes([whole[place] ^ (1 << rng.integers(8))]) + whole[place + 1 :]
            )
            with pytest.raises(ArtifactError):
                load(folder)
        for cut in (b"", whole[: len(whole) // 2], whole[:-1], whole + b"\n"):
            (folder / name).write_bytes(cut)
            with pytest.raises(ArtifactError):
                load(folder)
        (folder / name).write_bytes(whole)
    load(folder)


def test_an_interrupted_save_is_refused(artifact: Artifact, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, content: bytes) -> None:
        if path.name == ABOUT:
            raise WriteError(f"{path} cannot be written: no space")
        path.write_bytes(content)

    monkeypatch.setattr(artifacts, "write", full)
    with refused(WriteError):
        save(replace(artifact, arrays={}), folder)
    assert get_code(folder) == "damaged_artifact"


def test_a_folder_without_a_probe_is_refused(artifact: Artifact, folder: Path, tmp_path: Path) -> None:
    assert get_code(tmp_path) == "unreadable_artifact"
    for text, code in (("{", "damaged_artifact"), ("[" * 100_000, "damaged_artifact"), ("[]", "invalid_artifact")):
        (folder / ABOUT).write_text(text)
        assert get_code(folder) == code
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError):
        save(artifact, tmp_path / "file" / "probe")


@pytest.mark.parametrize(
    ("about", "code"),
    [
        ({"format": 3}, "wrong_format"),
        ({"kind": "mood"}, "wrong_kind"),
        ({"classes": ["easy", "hard"]}, "invalid_artifact"),
        ({"classes": ["easy", "easy", "hard"]}, "invalid_artifact"),
        ({"layer": "last"}, "invalid_artifact"),
        ({"more": 1}, "invalid_artifact"),
        ({"base": {"name": "x"}}, "invalid_artifact"),
    ],
)
def test_invalid_facts_are_refused(folder: Path, about: dict[str, Any], code: str) -> None:
    rewrite(folder, **about)
    assert get_code(folder) == code


@pytest.mark.parametrize(
    "change",
    [
        lambda n: n | {"network.w1": n["network.w1"][:, :-1]},
        lambda n: n | {"network.w1": n["network.w1"] * np.float32("nan")},
        lambda n: n | {"network.temperature": np.zeros((), np.float32)},
        lambda n: n | {"arrays.tokens": np.full(3, np.nan)},
        lambda n: n | {"stray": np.zeros(3)},
        lambda n: {k: v for k, v in n.items() if k != "network.bias"},
    ],
)
def test_invalid_arrays_are_refused(folder: Path, change: Callable[..., Any]) -> None:
    rewrite(folder, change(from_bytes((folder / NUMBERS).read_bytes())))
    with refused(ArtifactError):
        load(folder)


def test_a_file_that_is_not_safetensors_is_refused(folder: Path) -> None:
    (folder / NUMBERS).write_bytes(b"\x80\x04pickle")
    rewrite(folder, sha256=hashlib.sha256(b"\x80\x04pickle").hexdigest())
    assert get_code(folder) == "invalid_artifact"


def test_another_model_or_layer_is_refused(folder: Path) -> None:
    with pytest.raises(ArtifactError) as error:
        load(folder, fingerprint="cd" * 32)
    assert error.value.code == "wrong_model"
    assert get_code(folder, layer=-1) == "wrong_layer"


def test_values_that_cannot_be_saved_are_refused(artifact: Artifact) -> None:
    invalid: list[dict[str, Any]] = [
        {"provenance": {"model": object()}},
        {"certificates": [{"threshold": float("inf")}]},
        {"arrays": {"names": np.array(["a"])}},
    ]
    for changes in invalid:
        with refused(ArtifactError):
            replace(artifact, **changes)
    with refused(ArtifactError, "wrong_kind"):
        replace(artifact, kind="mood")
    with pytest.raises(ValueError):  # noqa: PT011
        artifact.arrays["tokens"][0] = 0
