"""The auto exit: a probe of the model where there is one, equal answers elsewhere."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from transformers.utils import logging

import tersely
from tersely.controller.budgets import TIERS
from tersely.controller.engines.transformers.engine import TransformersEngine, load_engine
from tersely.controller.policies import get_presets, make_policy
from tersely.controller.policies.exits import Convergence
from tersely.controller.policies.readiness import AutoExit, Readiness
from tersely.controller.probe_registry import ProbeError
from tersely.controller.replay import replay
from tersely.controller.text.markers import find_markers
from tersely.controller.types import BindContext, Capability
from tersely.errors import CapabilityError
from tersely.probes.artifact import ArtifactError

from ...support.planted_rules import store
from ...support.refusals import refused

PROBLEM = "Mia has 4 shells. Mia finds 3 more shells. How many shells does Mia have now?"


@pytest.fixture(scope="module")
def engine() -> TransformersEngine:
    logging.disable_progress_bar()
    return load_engine("tersely-tiny-small")


def ask(engine: Any, **options: Any) -> Any:
    return tersely.generate(engine, prompts=PROBLEM, temperature=0, max_new_tokens=400, **options)


def test_a_probe_of_this_model_decides(engine: TransformersEngine, tmp_path: Path) -> None:
    probes = store(tmp_path, engine)
    exit_, readiness = (ask(engine, policies=(name,), probes=probes) for name in ("auto_exit", "readiness"))
    assert exit_.token_ids == readiness.token_ids
    assert exit_.trace == readiness.trace
    assert [decision.policy for decision in exit_.trace] == ["readiness"]


def test_the_default_preset_takes_what_is_released(engine: TransformersEngine) -> None:
    assert "auto_exit" in get_presets()["balanced"]
    assert isinstance(AutoExit().bind(BindContext(engine)), Readiness)
    assert ask(engine).trace == ask(engine, preset="certified").trace


def test_equal_answers_decide_where_the_folder_holds_no_readiness_probe(
    engine: TransformersEngine, tmp_path: Path
) -> None:
    (tmp_path / "difficulty").mkdir()
    (tmp_path / "difficulty" / "probe.json").touch()  # a folder of `tersely calibrate` with this probe alone
    without = ask(engine, policies=(AutoExit(agree=1),), probes=str(tmp_path))
    assert without.token_ids == ask(engine, policies=(Convergence(1),)).token_ids
    assert [decision.policy for decision in without.trace] == ["convergence"]


def test_equal_answers_decide_where_the_engine_does_not_show_what_the_probe_reads(
    engine: TransformersEngine, tmp_path: Path
) -> None:
    probes = store(tmp_path, engine)
    blind, elsewhere = copy.copy(engine), copy.copy(engine)
    blind.capabilities = engine.capabilities - {Capability.HIDDEN_STATES}
    elsewhere.hidden_layers = (3,)  # type: ignore[assignment]
    for one in (blind, elsewhere):
        assert AutoExit(agree=3).bind(BindContext(one, probes)) == Convergence(3)
    with refused(CapabilityError):
        make_policy("readiness").bind(BindContext(elsewhere, probes))


def test_what_is_given_and_cannot_be_used_is_an_error(engine: TransformersEngine, tmp_path: Path) -> None:
    with pytest.raises(ProbeError):
        AutoExit().bind(BindContext(engine, str(tmp_path / "nowhere")))
    with pytest.raises(ArtifactError):
        AutoExit().bind(BindContext(engine, store(tmp_path, engine, fingerprint="0" * 64)))


def test_equal_answers_decide_where_there_is_no_engine(engine: TransformersEngine) -> None:
    plain = ask(engine, preset="off")
    markers = find_markers(engine.tokenizer)
    found = replay(plain.token_ids, (AutoExit(agree=1),), engine.tokenizer, markers, TIERS["normal"])
    assert [decision.policy for decision in found] == ["convergence"]
    tersely.custom_generate(engine.tokenizer, preset="balanced")
    with pytest.raises(TypeError):
        AutoExit().watch(None)  # type: ignore[arg-type]


def test_a_folder_without_any_probe_is_refused(engine: TransformersEngine, tmp_path: Path) -> None:
    with pytest.raises(ProbeError):
        ask(engine, probes=str(tmp_path))
