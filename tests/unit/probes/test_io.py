"""Probes of each kind on disk, and those released with tersely."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tersely.models import get_model_path
from tersely.probes.artifact import Artifact, ArtifactError, load, save
from tersely.probes.estimator import ProbeClassifier
from tersely.probes.fingerprint import checkpoint_fingerprint
from tersely.probes.io import MODE, find_pretrained, load_stop_rule, load_tier_probe

BASE = {"name": "tersely-tiny-small", "fingerprint": "ab" * 32}


@pytest.fixture
def router() -> Artifact:
    rows = np.random.default_rng(0).normal(size=(20, 2))
    estimator = ProbeClassifier(epochs=1).fit(rows, np.repeat(["instant", "reasoning"], 10))
    return Artifact(MODE, estimator.to_network(), tuple(estimator.classes_.tolist()), -1, (), BASE)


def test_a_mode_probe_loads_as_it_was_saved(router: Artifact, tmp_path: Path) -> None:
    save(router, tmp_path)
    loaded = load(tmp_path, fingerprint=BASE["fingerprint"], layer=-1, kind=MODE)
    assert loaded == router
    assert loaded.classes == ("instant", "reasoning")
    for options, code in (
        ({"fingerprint": "cd" * 32}, "wrong_model"),
        ({"layer": 3}, "wrong_layer"),
    ):
        with pytest.raises(ArtifactError) as error:
            load(tmp_path, kind=MODE, **options)  # type: ignore[arg-type]
        assert error.value.code == code


def test_a_probe_of_another_kind_is_refused(router: Artifact, tmp_path: Path) -> None:
    save(router, tmp_path)
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
    assert load(folder, fingerprint=fingerprint, kind=MODE).classes == ("agentic", "instant", "reasoning")
