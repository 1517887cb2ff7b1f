"""Probes on disk: what was saved comes back, anything else is refused."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
from safetensors.numpy import load as from_bytes
from safetensors.numpy import save as to_bytes

from tersely.io import WriteError
from tersely.probes import artifact as artifacts
from tersely.probes.artifact import ABOUT, NUMBERS, Artifact, ArtifactError, from_pretrained, load, push_to_hub, save
from tersely.probes.difficulty import DifficultyProbe
from tersely.probes.estimator import ProbeClassifier
from tersely.probes.readiness import ReadinessProbe

BASE = {"name": "tersely-tiny-small", "fingerprint": "ab" * 32}


@pytest.fixture(scope="module")
def estimator() -> ProbeClassifier:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(90, 6))
    probe = ProbeClassifier(epochs=2).fit(rows, np.array(["easy", "normal", "hard"])[rng.integers(0, 3, 90)])
    return probe.calibrate(rows[:40], probe.predict(rows[:40]))


@pytest.fixture
def made(estimator: ProbeClassifier) -> Artifact:
    table = {"accuracy": np.full((3, 2), 0.5), "tokens": np.array([[100.0, 300.0]] * 3, np.float32)}
    return DifficultyProbe.of(
        estimator,
        layer=4,
        base=BASE,
        features=("log words",),
        provenance={"data": "0123", "task": "numbers", "split": "fit", "seed": 0, "n": 90, "tiers": ["easy", "normal"]},
        metrics={"auroc": np.float32(0.75), "nothing": float("nan"), "by tier": [0.5, 0.25]},
        certificates=[{"alpha": 0.02, "threshold": None}],
        arrays=table,
    ).artifact


@pytest.fixture
def folder(made: Artifact, tmp_path: Path) -> Path:
    save(made, tmp_path / "probe")
    return tmp_path / "probe"


def rewrite(folder: Path, numbers: dict[str, np.ndarray] | None = None, **about: Any) -> None:
    """Change a saved probe as somebody would who knows its digests."""
    found = json.loads((folder / ABOUT).read_text())
    del found["digest"]
    if numbers is not None:
        (folder / NUMBERS).write_bytes(to_bytes(numbers))
        found["sha256"] = hashlib.sha256((folder / NUMBERS).read_bytes()).hexdigest()
    text = json.dumps(found | about, sort_keys=True, indent=1) + "\n"
    digest = hashlib.sha256(text.encode()).hexdigest()
    (folder / ABOUT).write_text(json.dumps(found | about | {"digest": digest}, sort_keys=True, indent=1) + "\n")


def test_what_was_saved_comes_back(made: Artifact, folder: Path, estimator: ProbeClassifier) -> None:
    found = load(folder, fingerprint=BASE["fingerprint"], layer=4)
    assert found == made
    assert sorted(p.name for p in folder.iterdir()) == [ABOUT, NUMBERS]
    rows = np.random.default_rng(1).normal(size=(50, 6))
    assert np.array_equal(found.network.proba(rows), estimator.predict_proba(rows))
    again = ProbeClassifier.from_network(found.network, found.classes)
    assert np.array_equal(again.predict(rows), estimator.predict(rows))
    assert found.arrays["tokens"].dtype == np.float32
    assert found.arrays["accuracy"].dtype == np.float64
    assert found.metrics == {"auroc": 0.75, "nothing": None, "by tier": [0.5, 0.25]}
    assert found.certificates == ({"alpha": 0.02, "threshold": None},)
    assert found.provenance["task"] == "numbers"


def test_any_difference_makes_another_artifact(made: Artifact) -> None:
    other = made.network.w1.copy()
    other[0, 0] += 1
    changes: list[dict[str, Any]] = [
        {"layer": 3},
        {"base": {**BASE, "name": "another"}},
        {"metrics": {}},
        {"network": replace(made.network, w1=other)},
        {"arrays": {}},
    ]
    assert all(replace(made, **change) != made for change in changes)


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


def test_a_save_that_is_cut_short_is_refused(made: Artifact, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, content: bytes) -> None:
        if path.name == ABOUT:
            raise WriteError(f"{path} cannot be written: no space")
        path.write_bytes(content)

    monkeypatch.setattr(artifacts, "write", full)
    with pytest.raises(WriteError, match="no space"):
        save(replace(made, arrays={}), folder)
    with pytest.raises(ArtifactError, match=r"not the file that probe\.json belongs to: .* saving was cut short"):
        load(folder)


def test_a_folder_that_holds_no_probe_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"probe\.json cannot be read: No such file .*; accepted: a folder with"):
        load(tmp_path)
    for text, reason in (("{", "not JSON"), ("[" * 100_000, "not JSON"), ("[]", "does not describe a probe")):
        (folder / ABOUT).write_text(text)
        with pytest.raises(ArtifactError, match=reason):
            load(folder)
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError, match="cannot be made"):
        save(_any_artifact(), tmp_path / "file" / "probe")


def _any_artifact() -> Artifact:
    rng = np.random.default_rng(0)
    fitted = ProbeClassifier(epochs=1).fit(rng.normal(size=(20, 2)), np.repeat(["hopeful", "ready"], 10))
    return ReadinessProbe.of(fitted, layer=-1, base=BASE).artifact


@pytest.mark.parametrize(
    ("about", "reason"),
    [
        ({"format": 3}, "format 3; accepted: 2. Another tersely wrote it"),
        ({"kind": "mood"}, "kind is 'mood'; accepted: difficulty, readiness"),
        ({"classes": ["easy", "hard"]}, "accepted: 3 different names"),
        ({"classes": ["easy", "easy", "hard"]}, "accepted: 3 different names"),
        ({"layer": "last"}, "does not describe a probe"),
        ({"more": 1}, "does not describe a probe"),
        ({"base": {"name": "x"}}, "accepted: `name` and `fingerprint`"),
    ],
)
def test_facts_that_are_none_are_refused(folder: Path, about: dict[str, Any], reason: str) -> None:
    rewrite(folder, **about)
    with pytest.raises(ArtifactError, match=reason):
        load(folder)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda n: n | {"network.w1": n["network.w1"][:, :-1]}, "array b1 of a network has shape"),
        (lambda n: n | {"network.w1": n["network.w1"] * np.float32("nan")}, "array w1 of a network holds NaN"),
        (lambda n: n | {"network.w2": n["network.w2"].astype(np.float64)}, "is float64; accepted: float32"),
        (lambda n: n | {"network.temperature": np.zeros((), np.float32)}, "temperature of a network is 0"),
        (lambda n: n | {"arrays.tokens": np.full(3, np.nan)}, "array tokens holds float64 or NaN"),
        (lambda n: n | {"stray": np.zeros(3)}, "holds no probe that can be used"),
        (lambda n: {k: v for k, v in n.items() if k != "network.bias"}, "arrays of a network are"),
    ],
)
def test_numbers_that_make_no_network_are_refused(folder: Path, change: Callable[..., Any], reason: str) -> None:
    rewrite(folder, change(from_bytes((folder / NUMBERS).read_bytes())))
    with pytest.raises(ArtifactError, match=reason):
        load(folder)


def test_numbers_that_are_no_safetensors_are_refused(folder: Path) -> None:
    (folder / NUMBERS).write_bytes(b"\x80\x04pickle")
    rewrite(folder, sha256=hashlib.sha256(b"\x80\x04pickle").hexdigest())
    with pytest.raises(ArtifactError, match="holds no probe that can be used"):
        load(folder)


def test_another_model_or_layer_is_refused(folder: Path) -> None:
    with pytest.raises(
        ArtifactError, match=r"learnt on tersely-tiny-small \(abab.*big is another one \(cdcd.*`tersely calibrate`"
    ):
        load(folder, fingerprint="cd" * 32, model="big")
    with pytest.raises(ArtifactError, match="reads hidden layer 4 and would be given -1"):
        load(folder, layer=-1)
    with pytest.raises(ArtifactError, match="learnt on"):
        DifficultyProbe.load(folder, fingerprint="cd" * 32)
    with pytest.raises(ArtifactError, match="this is a difficulty probe; accepted: a readiness probe"):
        ReadinessProbe.load(folder)


def test_what_is_not_plain_is_not_saved(made: Artifact) -> None:
    with pytest.raises(ArtifactError, match=r"provenance cannot be written: .*; accepted: plain JSON"):
        replace(made, provenance={"model": object()})
    with pytest.raises(ArtifactError, match="certificates cannot be written"):
        replace(made, certificates=[{"threshold": float("inf")}])
    with pytest.raises(ArtifactError, match="array names holds <U1 or NaN; accepted: numbers"):
        replace(made, arrays={"names": np.array(["a"])})
    with pytest.raises(ValueError, match="read-only"):
        made.arrays["tokens"][0] = 0


def test_the_faces_of_probes(made: Artifact, folder: Path) -> None:
    probe = DifficultyProbe.load(folder)
    assert probe.classes == ("easy", "hard", "normal")
    assert probe.table.tiers == ("easy", "normal")
    assert probe.table.tokens.tolist() == [[100, 300]] * 3
    with pytest.raises(ArtifactError, match="without a table of tiers: it has no 'accuracy'"):
        _ = DifficultyProbe(replace(made, arrays={})).table
    probe.save(folder.parent / "again")
    assert (folder.parent / "again" / NUMBERS).read_bytes() == (folder / NUMBERS).read_bytes()


def test_readiness_knows_classes_that_never_occurred(tmp_path: Path) -> None:
    ReadinessProbe(_any_artifact()).save(tmp_path)
    probe = ReadinessProbe.load(tmp_path)
    chances = probe.proba(np.random.default_rng(0).normal(size=(5, 2)))
    assert probe.classes == ("ready", "hopeful", "hopeless")
    assert chances.shape == (5, 3)
    assert np.allclose(chances.sum(axis=1), 1)
    assert (chances[:, 2] == 0).all()
    assert np.array_equal(
        chances[:, [1, 0]], probe.artifact.network.proba(np.random.default_rng(0).normal(size=(5, 2)))
    )


class Hub:
    """A hub of one folder that remembers what it was asked."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.asked: list[dict[str, Any]] = []

    def create_repo(self, repo_id: str, **options: Any) -> None:
        self.asked.append({"repo_id": repo_id, **options})

    def upload_folder(self, folder_path: Any, allow_patterns: list[str], **options: Any) -> str:
        self.asked.append(options)
        for name in allow_patterns:
            shutil.copy(Path(folder_path) / name, self.place)
        return "https://hub/commit"

    def snapshot_download(self, repo_id: str, **options: Any) -> str:
        self.asked.append({"repo_id": repo_id, **options})
        return str(self.place)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    (tmp_path / "hub").mkdir()
    made = Hub(tmp_path / "hub")
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda token=None: made)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", made.snapshot_download)
    return made


def test_a_probe_goes_to_the_hub_and_back(made: Artifact, folder: Path, hub: Hub) -> None:
    assert push_to_hub(folder, "me/probe", private=True) == "https://hub/commit"
    assert hub.asked[0] == {"repo_id": "me/probe", "private": True, "exist_ok": True}
    assert from_pretrained("me/probe", revision="v1") == made
    assert hub.asked[-1]["revision"] == "v1"
    assert hub.asked[-1]["allow_patterns"] == [NUMBERS, ABOUT]
    assert DifficultyProbe(made).push_to_hub("me/other") == "https://hub/commit"
    assert DifficultyProbe.from_pretrained("me/other", fingerprint=BASE["fingerprint"]).artifact == made
    with pytest.raises(ArtifactError, match="learnt on"):
        from_pretrained("me/probe", fingerprint="cd" * 32)
    asked = len(hub.asked)
    assert from_pretrained(folder) == made
    assert len(hub.asked) == asked, "a folder needs no hub"


def test_a_damaged_probe_is_not_uploaded(folder: Path, hub: Hub) -> None:
    (folder / NUMBERS).write_bytes(b"")
    with pytest.raises(ArtifactError):
        push_to_hub(folder, "me/probe")
    assert hub.asked == []


def test_what_the_hub_does_not_have_is_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*_: Any, **__: Any) -> str:
        raise huggingface_hub.errors.LocalEntryNotFoundError("no such\nrepository")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", absent)
    with pytest.raises(ArtifactError, match="'me/none' is no folder here, and the hub said: no such repository"):
        from_pretrained("me/none")
