"""Probes of each kind on disk, and those released with tersely."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tersely.models import get_model_path
from tersely.probes.artifact import ArtifactError
from tersely.probes.estimator import ProbeClassifier
from tersely.probes.fingerprint import checkpoint_fingerprint
from tersely.probes.io import MODE, ModeProbe, find_pretrained, load_stop_rule, load_tier_probe

BASE = {"name": "tersely-tiny-small", "fingerprint": "ab" * 32}


@pytest.fixture
def router() -> ModeProbe:
    rows = np.random.default_rng(0).normal(size=(20, 2))
    estimator = ProbeClassifier(epochs=1).fit(rows, np.repeat(["instant", "reasoning"], 10))
    return ModeProbe.from_estimator(estimator, layer=-1, base=BASE, metrics={"loss": 0.5})


def test_a_mode_probe_loads_as_it_was_saved(router: ModeProbe, tmp_path: Path) -> None:
    router.save(tmp_path)
    loaded = ModeProbe.load(tmp_path, fingerprint=BASE["fingerprint"], layer=-1)
    assert loaded.artifact == router.artifact
    assert loaded.classes == ("instant", "reasoning")
    rows = np.random.default_rng(1).normal(size=(5, 2))
    assert np.array_equal(loaded.proba(rows), router.proba(rows))
    for options, code in (
        ({"fingerprint": "cd" * 32}, "wrong_model"),
        ({"layer": 3}, "wrong_layer"),
    ):
        with pytest.raises(ArtifactError) as error:
            ModeProbe.load(tmp_path, **options)  # type: ignore[arg-type]
        assert error.value.code == code


def test_a_probe_of_another_kind_is_refused(router: ModeProbe, tmp_path: Path) -> None:
    router.save(tmp_path)
    with pytest.raises(ArtifactError) as error:
        load_tier_probe(tmp_path, BASE["fingerprint"])
    assert error.value.code == "wrong_kind"


@pytest.mark.parametrize("model", ["tersely-tiny-small", "tersely-tiny-large"])
def test_released_probes_are_found_by_fingerprint_and_load(model: str) -> None:
    fingerprint = checkpoint_fingerprint(get_model_path(model))
    difficulty, readiness = (find_pretrained(fingerprint, kind) for kind in ("difficulty", "readiness"))
    assert difficulty is not None and readiness is not None
    assert load_tier_probe(difficulty, fingerprint).learned_from
    for trials in (False, True, None):
        assert load_stop_rule(readiness, fingerprint, trials).threshold is not None
    assert find_pretrained("cd" * 32, "readiness") is None


def test_the_released_router_loads() -> None:
    fingerprint = checkpoint_fingerprint(get_model_path("tersely-tiny-agent"))
    folder = find_pretrained(fingerprint, MODE)
    assert folder is not None
    assert ModeProbe.load(folder, fingerprint=fingerprint).classes == ("agentic", "instant", "reasoning")
