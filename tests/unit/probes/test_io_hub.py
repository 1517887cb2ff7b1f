"""Probes go to the hub and come back; what the hub refuses is one error."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest

from tersely.probes.artifact import ABOUT, NUMBERS, Artifact, ArtifactError, save
from tersely.probes.estimator import ProbeClassifier
from tersely.probes.io import from_pretrained, push_to_hub

from ...support.refusals import refused

BASE = {"name": "tersely-tiny-small", "fingerprint": "ab" * 32}


@pytest.fixture(scope="module")
def artifact() -> Artifact:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(60, 4))
    probe = ProbeClassifier(epochs=1).fit(rows, np.array(["easy", "hard"])[rng.integers(0, 2, 60)])
    return Artifact(
        "difficulty", probe.to_network(), tuple(probe.classes_.tolist()), layer=4, base=BASE, features=("log words",)
    )


@pytest.fixture
def folder(artifact: Artifact, tmp_path: Path) -> Path:
    save(artifact, tmp_path / "probe")
    return tmp_path / "probe"


class Hub:
    """A hub of one folder that records the calls."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.calls: list[dict[str, Any]] = []

    def create_repo(self, repo_id: str, **options: Any) -> None:
        self.calls.append({"repo_id": repo_id, **options})

    def upload_folder(self, folder_path: Any, allow_patterns: list[str], **options: Any) -> str:
        self.calls.append(options)
        for name in allow_patterns:
            shutil.copy(Path(folder_path) / name, self.folder)
        return "https://hub/commit"

    def snapshot_download(self, repo_id: str, **options: Any) -> str:
        self.calls.append({"repo_id": repo_id, **options})
        return str(self.folder)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    (tmp_path / "hub").mkdir()
    fake = Hub(tmp_path / "hub")
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda token=None: fake)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fake.snapshot_download)
    return fake


def test_a_probe_goes_to_the_hub_and_back(artifact: Artifact, folder: Path, hub: Hub) -> None:
    assert push_to_hub(folder, "me/probe", private=True) == "https://hub/commit"
    assert hub.calls[0] == {"repo_id": "me/probe", "private": True, "exist_ok": True}
    assert from_pretrained("me/probe", revision="v1") == artifact
    assert hub.calls[-1]["revision"] == "v1"
    assert hub.calls[-1]["allow_patterns"] == [NUMBERS, ABOUT]
    with refused(ArtifactError, "wrong_model"):
        from_pretrained("me/probe", fingerprint="cd" * 32)
    calls = len(hub.calls)
    assert from_pretrained(folder) == artifact
    assert len(hub.calls) == calls, "a folder needs no hub"


def test_a_damaged_probe_is_not_uploaded(folder: Path, hub: Hub) -> None:
    (folder / NUMBERS).write_bytes(b"")
    with pytest.raises(ArtifactError):
        push_to_hub(folder, "me/probe")
    assert hub.calls == []


def test_what_the_hub_does_not_have_is_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*_: Any, **__: Any) -> str:
        raise huggingface_hub.errors.LocalEntryNotFoundError("no such\nrepository")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", absent)
    with pytest.raises(ArtifactError) as error:
        from_pretrained("me/none")
    assert error.value.code == "hub_error"
