"""A whole calibration on planted data: what is learned, the parts of the data, refusals."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tersely.errors import OptionError
from tersely.probes.artifact import ArtifactError
from tersely.probes.calibrate import readiness
from tersely.probes.calibrate.data import QuestionParts, get_part, read_boundaries, read_questions, split_questions
from tersely.probes.calibrate.difficulty import fit_difficulty
from tersely.probes.calibrate.run import (
    CalibrationSettings,
    calibrate_into,
    choose_layer,
)
from tersely.probes.io import load_stop_rule, load_tier_probe
from tersely.probes.records import RecordsError, RecordTable
from tersely.probes.risk_control import Outcomes, certify, risk_curve, threshold_grid

from ...support.planted_calibration import ALPHA, FINGERPRINT, Calibration, N
from ...support.planted_records import planted, replace_columns, write_planted
from ...support.refusals import refused

pytestmark = pytest.mark.slow

# -- what is learned --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["none fails", "easy fails"])
def test_difficulty_is_read_from_the_state_alone(calibration: Calibration, target: str) -> None:
    row = calibration.report["difficulty"][target]
    probe = row["probe"]
    assert probe["n"] == len(calibration.hashes("test"))
    assert probe["auroc"] > 0.88
    assert probe["low"] < probe["auroc"] < probe["high"]
    for control in ("length", "words"):
        assert row[control]["auroc"] < probe["low"], control
    shuffled = row["shuffled"]
    assert len(shuffled["draws"]) == 5
    assert shuffled["auroc"] == pytest.approx(np.mean(shuffled["draws"]))
    assert abs(shuffled["auroc"] - 0.5) < 0.25
    assert shuffled["auroc"] < probe["low"]


def test_choosing_tiers_saves_tokens_and_costs_little_accuracy(calibration: Calibration) -> None:
    choice, alone = (calibration.report["difficulty"][key] for key in ("choice", "choice alone"))
    assert alone["saved"] > 0.05
    assert choice["saved"] > alone["saved"], "the exit saves more"
    assert choice["accuracy change"] == pytest.approx(choice["accuracy"] - choice["base accuracy"])
    assert alone["accuracy change"] > -0.1
    assert choice["accuracy change"] > -0.1 - ALPHA, "the exit may harm some more"
    assert sum(choice["shares"].values()) == pytest.approx(1)
    assert sum(share > 0 for share in choice["shares"].values()) > 1


def test_readiness_beats_raw_confidence(calibration: Calibration) -> None:
    found = calibration.report["readiness"]
    assert found["questions"] == len(calibration.hashes("test"))
    for name in ("free", "trials"):
        assert found[name]["quality"]["auroc"] > 0.95 > found["confidence"]["quality"]["auroc"] > 0.6
        assert found[name]["saved"] > found["confidence"]["saved"] + 0.1
        assert found[name]["saved"] <= found[name]["oracle"] + 0.05
        assert found[name]["harm"] <= ALPHA + 0.05
    assert found["free"]["asked"] == 0
    assert found["confidence"]["asked"] == pytest.approx(found["boundaries"] / found["questions"])


def test_saved_probes_name_the_questions_they_learned_from(calibration: Calibration) -> None:
    tiers = load_tier_probe(calibration.out / "difficulty", FINGERPRINT)
    assert tiers.tiers == ("none", "easy", "normal", "hard")
    assert tiers.learned_from == calibration.hashes("learn", "tune")
    stored = load_stop_rule(calibration.out / "readiness", FINGERPRINT, trials=False)
    assert stored.learned_from == calibration.hashes("learn", "tune", "calibrate")
    assert not stored.learned_from & calibration.hashes("test")
    assert stored.layer == tiers.layer == -1
    assert stored.threshold == stored.certificate.threshold == calibration.report["readiness"]["free"]["threshold"]
    assert stored.certificate.n == len(calibration.hashes("calibrate"))
    provenance = json.loads((calibration.out / "readiness" / "probe.json").read_text())["provenance"]
    assert provenance["data"] == calibration.records.hash


def test_the_loaded_rule_is_the_one_that_was_evaluated(calibration: Calibration) -> None:
    records, keep = calibration.parts.select("test")
    test = read_boundaries(records, -1, keep=keep)
    for name, trials in (("free", False), ("trials", True)):
        stored = load_stop_rule(calibration.out / "readiness", FINGERPRINT, trials)
        outcomes = readiness.score_outcomes(stored.rule, test)
        harm, saved = risk_curve(outcomes, [stored.threshold or 0.0])
        row = calibration.report["readiness"][name]
        assert (float(harm[0]), float(saved[0])) == pytest.approx((row["harm"], row["saved"]), abs=1e-6)
        assert test.score(stored.rule).tried.sum() / len(test.full) == pytest.approx(row["asked"])


def test_saved_probes_know_what_their_questions_look_like(calibration: Calibration) -> None:
    known = calibration.parts.describe_questions()
    assert known is not None
    assert load_stop_rule(calibration.out / "readiness", FINGERPRINT, trials=False).known == known
    assert load_tier_probe(calibration.out / "difficulty", FINGERPRINT).known == known


def test_the_variant_that_saved_more_is_loaded(calibration: Calibration) -> None:
    free, paid, best = (
        load_stop_rule(calibration.out / "readiness", FINGERPRINT, trials) for trials in (False, True, None)
    )
    assert free.rule.paid is None
    assert paid.rule.paid is not None
    expected = paid if paid.certificate.saved > free.certificate.saved else free
    assert best.certificate == expected.certificate
    assert (best.rule.paid is None) == (expected.rule.paid is None)


def test_probes_of_another_model_or_kind_are_refused(calibration: Calibration) -> None:
    with pytest.raises(ArtifactError) as error:
        load_stop_rule(calibration.out / "readiness", "ab" * 32, None)
    assert error.value.code == "wrong_model"
    with pytest.raises(ArtifactError) as error:
        load_tier_probe(calibration.out / "difficulty", None)
    assert error.value.code == "unknown_model"
    with pytest.raises(ArtifactError) as error:
        load_tier_probe(calibration.out / "readiness", FINGERPRINT)
    assert error.value.code == "wrong_kind"


def test_a_certificate_holds_for_similar_questions(calibration: Calibration) -> None:
    """Forty calibrations on fresh questions, each compared with the harm in a large population."""
    repeats, each = 40, 120
    alpha, delta = 0.08, 0.1
    rule = load_stop_rule(calibration.out / "readiness", FINGERPRINT, trials=True).rule
    fresh = planted(repeats * each + 1500, seed=77, tiers=("normal",))
    number = np.arange(fresh.size("questions"))
    records, keep = calibration.parts.select("tune")
    order = threshold_grid(read_boundaries(records, -1, keep=keep).score(rule).score)

    def outcomes(mask: Any) -> Outcomes:
        part = read_boundaries(fresh, -1, keep=mask)
        return readiness.score_outcomes(rule, part)

    made = [certify(outcomes(number // each == repeat), alpha, delta, order) for repeat in range(repeats)]
    population = outcomes(number >= repeats * each)
    found = [c.threshold for c in made if c.threshold is not None]
    harm, saved = risk_curve(population, found)
    assert len(found) > repeats / 2
    assert np.mean(saved) > 0.2
    assert (harm > alpha).sum() <= delta * repeats + 4  # the share within delta, and some chance
    assert np.mean(harm) < alpha


# -- parts of the data ---------------------------------------------------------------------------------------------


def test_one_collection_is_divided_by_question(calibration: Calibration) -> None:
    names = ("learn", "tune", "calibrate", "test")
    sizes = {name: len(calibration.hashes(name)) for name in names}
    assert sum(sizes.values()) == N == len(calibration.hashes(*names)), "disjoint, and nothing left out"
    shares = {"learn": 6, "tune": 2, "calibrate": 5, "test": 3}
    assert all(abs(sizes[name] - N * shares[name] / 16) < 3 * N**0.5 for name in names)
    hashes = calibration.records.texts["hash"]
    assert {get_part(h) for h in hashes} == {"fit", "calibrate", "test"}
    assert calibration.hashes("test") == {h for h in hashes if get_part(h) == "test"}


def test_separate_collections_are_used_whole(tmp_path: Path) -> None:
    folders = [write_planted(tmp_path / str(seed), planted(30, seed=seed), 1) for seed in range(3)]
    parts = split_questions(*folders)
    for name, seed in (("calibrate", 1), ("test", 2)):
        records, keep = parts.select(name)
        assert records.plan["seed"] == seed
        assert keep.all()
    learn, tune = parts.select("learn")[1], parts.select("tune")[1]
    assert parts.select("learn")[0].plan["seed"] == 0
    assert not (learn & tune).any()
    assert (learn | tune).all()


def test_collections_that_do_not_match_are_refused(tmp_path: Path) -> None:
    def collect(name: str, **settings: Any) -> Path:
        return write_planted(tmp_path / name, planted(6, **settings), 1)

    first, second = collect("first", seed=1), collect("second", seed=2)
    for name, value in (("fingerprint", "ab" * 32), ("tiers", ("none", "normal"))):
        with pytest.raises(RecordsError) as error:
            split_questions(first, second, collect(name, seed=3, **{name: value}))
        assert error.value.code == "other_plan"
    for test in (collect("twin", seed=2), first):
        with pytest.raises(RecordsError) as error:
            split_questions(first, second, test)
        assert error.value.code == "shared_questions"
    for one in ((second, None), (None, second)):
        with pytest.raises(OptionError):
            split_questions(first, *one)


def test_certificates_need_only_the_base_tier(tmp_path: Path) -> None:
    """Tiers are chosen on the other two collections, so calibrating on many questions is cheap."""
    fit, calibrate, test = (
        write_planted(tmp_path / name, planted(n, seed=seed, tiers=tiers), 1)
        for name, n, seed, tiers in (
            ("fit", N, 1, ("none", "normal")),
            ("calibrate", 120, 2, ("normal",)),
            ("test", 60, 3, ("none", "normal")),
        )
    )
    report = calibrate_into(tmp_path / "out", split_questions(fit, calibrate, test), CalibrationSettings(alpha=ALPHA))
    assert load_stop_rule(tmp_path / "out" / "readiness", FINGERPRINT, trials=False).certificate.n == 120
    assert report["difficulty"]["choice"]["n"] == 60


def test_features_of_another_version_are_refused(tmp_path: Path) -> None:
    records = planted(6)
    old = RecordTable({**records.plan, "features": records.plan["features"][::-1]}, records.columns, records.texts)
    with pytest.raises(RecordsError) as error:
        split_questions(write_planted(tmp_path, old, 1), None, None)
    assert error.value.code == "other_features"


# -- refusals and choices ---------------------------------------------------------------------------------------------


def divide(records: RecordTable) -> QuestionParts:
    return QuestionParts(records, records, records, True)


def test_too_few_questions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RecordsError) as error:
        calibrate_into(tmp_path, divide(planted(60)), CalibrationSettings())
    assert error.value.code == "too_few_questions"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("solved", [0.0, 1.0])
def test_questions_with_equal_outcomes_are_refused(tmp_path: Path, solved: float) -> None:
    records = planted(N, solved=solved)
    with pytest.raises(OptionError) as error:
        calibrate_into(tmp_path, divide(records), CalibrationSettings())
    assert error.value.code == "nothing_to_learn"
    both = (read_questions(records, -1),) * 2
    with pytest.raises(OptionError) as error:
        fit_difficulty(both, both, -1, 0.01)
    assert error.value.code == "nothing_to_learn"


def test_rollouts_in_which_thinking_repairs_nothing_are_refused(tmp_path: Path) -> None:
    records = planted(N, live=True)
    settled = replace_columns(records, boundaries__same=np.ones_like(records["boundaries.same"]))
    with pytest.raises(OptionError) as error:
        calibrate_into(tmp_path, divide(settled), CalibrationSettings())
    assert error.value.code == "nothing_to_learn"


def test_a_layer_that_was_not_collected_is_refused() -> None:
    records = planted(10, layers=(2, 12))
    with refused(OptionError, "unknown_name"):
        choose_layer(records, 1, lambda layer: 0.0)
    with refused(OptionError, "unknown_name"):
        read_questions(records, -1)


def test_the_layer_with_the_lowest_loss_is_chosen_unless_one_is_given() -> None:
    records, asked = planted(10, layers=(2, 3, 12)), list[int]()

    def loss(layer: int) -> float:
        asked.append(layer)
        return {2: 0.5, 3: 0.1, 12: 0.3}[layer]

    assert choose_layer(records, None, loss) == 3
    assert asked == [2, 3, 12]
    assert choose_layer(records, 12, loss) == 12
    assert choose_layer(planted(10), None, loss) == -1
    assert asked == [2, 3, 12], "nothing is fitted without a choice"


@pytest.mark.parametrize(
    "settings",
    [
        {"alpha": 0.0},
        {"alpha": 1.0},
        {"alpha": float("nan")},
        {"delta": 1.5},
        {"margin": -0.1},
    ],
)
def test_settings_out_of_range_are_refused_before_any_work(settings: dict[str, Any]) -> None:
    with refused(OptionError):
        CalibrationSettings(**settings)


def test_unknown_labels_are_refused() -> None:
    with refused(OptionError, "unknown_name"):
        CalibrationSettings(labels="tier")


@pytest.mark.parametrize("live", [False, True])
def test_a_collection_without_the_base_tier_is_refused(tmp_path: Path, live: bool) -> None:
    records = planted(N, tiers=("none", "easy"), live=live)
    with pytest.raises(RecordsError) as error:
        calibrate_into(tmp_path, divide(records), CalibrationSettings())
    assert error.value.code == "no_rollouts"


def test_calibration_is_reproducible_by_seed() -> None:
    records = planted(N, seed=3, tiers=("none", "normal"))
    sets = [read_questions(records, -1, divide(records).select(name)[1]) for name in ("learn", "tune")]
    one, other = (fit_difficulty((sets[0], sets[0]), (sets[1], sets[1]), -1, 0.01, seed=5) for _ in range(2))
    assert one.network == other.network
    assert one.price == other.price
    assert replace(one, table=other.table).choose(sets[0].state[0]) == other.choose(sets[0].state[0])
