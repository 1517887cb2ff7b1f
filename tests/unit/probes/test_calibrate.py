"""From collected data to certified probes, on planted data: what is there is found, what is not is not promised."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tersely.cli.app import main
from tersely.errors import OptionError
from tersely.probes.artifact import ArtifactError
from tersely.probes.calibrate import readiness, run
from tersely.probes.calibrate.data import get_part, read_boundaries
from tersely.probes.calibrate.cli import as_text
from tersely.probes.calibrate.run import CalibrationSettings, QuestionParts, calibrate_into, split_questions
from tersely.probes.io import load_stop_rule, load_tier_probe
from tersely.probes.records import RecordsError, RecordTable
from tersely.probes.risk_control import Outcomes, certify, curve, grid
from tersely.probes.rule import StopRule

from ...support.commands import refused
from ...support.planted_records import planted, write_planted

MARK = "fe" * 32
N = 460
ALPHA = 0.1


class Learnt:
    """One calibration of one planted collection, which many tests look at."""

    def __init__(self, out: Path) -> None:
        self.out, self.records = out, planted(N)
        self.parts = QuestionParts(self.records, self.records, self.records, True)
        self.said: list[str] = []
        self.report = calibrate_into(out, self.parts, CalibrationSettings(alpha=ALPHA), self.said.append)

    def hashes(self, *names: str) -> set[str]:
        """The questions of some parts."""
        hashes = np.array(self.records.texts["hash"])
        return {h for name in names for h in hashes[self.parts.keep(name)[1]].tolist()}


@pytest.fixture(scope="module")
def learnt(tmp_path_factory: pytest.TempPathFactory) -> Learnt:
    return Learnt(tmp_path_factory.mktemp("calibrated"))


# -- what is learnt ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["none fails", "easy fails"])
def test_difficulty_is_read_from_the_state_and_nowhere_else(learnt: Learnt, target: str) -> None:
    row = learnt.report["difficulty"][target]
    probe = row["probe"]
    assert probe["n"] == len(learnt.hashes("test"))
    assert probe["auroc"] > 0.88
    assert probe["low"] < probe["auroc"] < probe["high"]
    for control in ("length", "words"):
        assert row[control]["auroc"] < probe["low"], control
    shuffled = row["shuffled"]
    assert len(shuffled["draws"]) == 5
    assert shuffled["auroc"] == pytest.approx(np.mean(shuffled["draws"]))
    assert abs(shuffled["auroc"] - 0.5) < 0.25
    assert shuffled["auroc"] < probe["low"]


def test_choosing_tiers_saves_tokens_at_little_accuracy(learnt: Learnt) -> None:
    choice, alone = (learnt.report["difficulty"][key] for key in ("choice", "choice alone"))
    assert alone["saved"] > 0.05
    assert choice["saved"] > alone["saved"], "the exit saves more"
    assert choice["accuracy change"] == pytest.approx(choice["accuracy"] - choice["base accuracy"])
    assert alone["accuracy change"] > -0.1
    assert choice["accuracy change"] > -0.1 - ALPHA, "the exit may harm as many"
    assert sum(choice["shares"].values()) == pytest.approx(1)
    assert sum(share > 0 for share in choice["shares"].values()) > 1


def test_readiness_beats_raw_confidence_where_the_state_tells_more(learnt: Learnt) -> None:
    found = learnt.report["readiness"]
    assert found["questions"] == len(learnt.hashes("test"))
    for name in ("free", "trials"):
        assert found[name]["quality"]["auroc"] > 0.95 > found["confidence"]["quality"]["auroc"] > 0.6
        assert found[name]["saved"] > found["confidence"]["saved"] + 0.1
        assert found[name]["saved"] <= found[name]["oracle"] + 0.05
        assert found[name]["harm"] <= ALPHA + 0.05
    assert found["free"]["asked"] == 0
    assert found["confidence"]["asked"] == pytest.approx(found["boundaries"] / found["questions"])


def test_what_was_learnt_is_saved_with_what_it_was_learnt_from(learnt: Learnt) -> None:
    assert learnt.said == ["readiness", "difficulty"]
    tiers = load_tier_probe(learnt.out / "difficulty", MARK)
    assert tiers.tiers == ("none", "easy", "normal", "hard")
    assert tiers.learned_from == learnt.hashes("learn", "tune")
    stored = load_stop_rule(learnt.out / "readiness", MARK, trials=False)
    assert stored.learned_from == learnt.hashes("learn", "tune", "calibrate")
    assert not stored.learned_from & learnt.hashes("test")
    assert stored.layer == tiers.layer == -1
    assert stored.threshold == stored.certificate.threshold == learnt.report["readiness"]["free"]["threshold"]
    assert stored.certificate.n == len(learnt.hashes("calibrate"))
    provenance = json.loads((learnt.out / "readiness" / "probe.json").read_text())["provenance"]
    assert provenance["data"] == learnt.records.hash


def test_the_rule_that_is_read_is_the_one_that_was_examined(learnt: Learnt) -> None:
    records, keep = learnt.parts.keep("test")
    test = read_boundaries(records, -1, keep=keep)
    for name, trials in (("free", False), ("trials", True)):
        stored = load_stop_rule(learnt.out / "readiness", MARK, trials)
        walk = readiness.walked(stored.rule, test)
        harm, saved = curve(test.outcomes(walk.score, walk.paid), [stored.threshold or 0.0])
        row = learnt.report["readiness"][name]
        assert (float(harm[0]), float(saved[0])) == pytest.approx((row["harm"], row["saved"]), abs=1e-6)
        assert walk.asked.sum() / len(test.full) == pytest.approx(row["asked"])


def test_trials_are_taken_where_they_saved_more(learnt: Learnt) -> None:
    free, paid, best = (load_stop_rule(learnt.out / "readiness", MARK, trials) for trials in (False, True, None))
    assert free.rule.paid is None
    assert paid.rule.paid is not None
    expected = paid if paid.certificate.saved > free.certificate.saved else free
    assert best.certificate == expected.certificate
    assert (best.rule.paid is None) == (expected.rule.paid is None)


def test_probes_of_another_model_or_kind_are_refused(learnt: Learnt) -> None:
    with pytest.raises(ArtifactError, match="learnt on planted"):
        load_stop_rule(learnt.out / "readiness", "ab" * 32, None)
    with pytest.raises(ArtifactError, match="cannot be told which model"):
        load_tier_probe(learnt.out / "difficulty", None)
    with pytest.raises(ArtifactError, match="is a readiness probe; accepted: a difficulty probe"):
        load_tier_probe(learnt.out / "readiness", MARK)


def test_what_is_certified_holds_for_questions_like_these(learnt: Learnt) -> None:
    """Forty calibrations on fresh questions, each held against the harm on a large population."""
    repeats, each = 40, 120
    alpha, delta = 0.08, 0.1
    rule = load_stop_rule(learnt.out / "readiness", MARK, trials=True).rule
    fresh = planted(repeats * each + 1500, seed=77, tiers=("normal",))
    number = np.arange(fresh.size("questions"))
    records, keep = learnt.parts.keep("tune")
    order = grid(readiness.walked(rule, read_boundaries(records, -1, keep=keep)).score)

    def outcomes(mask: Any) -> Outcomes:
        part = read_boundaries(fresh, -1, keep=mask)
        walk = readiness.walked(rule, part)
        return part.outcomes(walk.score, walk.paid)

    made = [certify(outcomes(number // each == repeat), alpha, delta, order) for repeat in range(repeats)]
    population = outcomes(number >= repeats * each)
    found = [c.threshold for c in made if c.threshold is not None]
    harm, saved = curve(population, found)
    assert len(found) > repeats / 2
    assert np.mean(saved) > 0.2
    assert (harm > alpha).sum() <= delta * repeats + 4  # the share within delta, and its chance
    assert np.mean(harm) < alpha


# -- parts of the data ---------------------------------------------------------------------------------------------


def test_one_collection_is_divided_by_question(learnt: Learnt) -> None:
    names = ("learn", "tune", "calibrate", "test")
    sizes = {name: len(learnt.hashes(name)) for name in names}
    assert sum(sizes.values()) == N == len(learnt.hashes(*names)), "disjoint, and nothing left out"
    shares = {"learn": 6, "tune": 2, "calibrate": 5, "test": 3}
    assert all(abs(sizes[name] - N * shares[name] / 16) < 3 * N**0.5 for name in names)
    hashes = learnt.records.texts["hash"]
    assert {get_part(h) for h in hashes} == {"fit", "calibrate", "test"}
    assert learnt.hashes("test") == {h for h in hashes if get_part(h) == "test"}


def test_separate_collections_serve_as_they_are(tmp_path: Path) -> None:
    folders = [write_planted(tmp_path / str(seed), planted(30, seed=seed), 1) for seed in range(3)]
    parts = split_questions(*folders)
    for name, seed in (("calibrate", 1), ("test", 2)):
        records, keep = parts.keep(name)
        assert records.plan["seed"] == seed
        assert keep.all()
    learn, tune = parts.keep("learn")[1], parts.keep("tune")[1]
    assert parts.keep("learn")[0].plan["seed"] == 0
    assert not (learn & tune).any()
    assert (learn | tune).all()


def test_collections_that_do_not_fit_each_other_are_refused(tmp_path: Path) -> None:
    def made(name: str, **settings: Any) -> Path:
        return write_planted(tmp_path / name, planted(6, **settings), 1)

    first, second = made("first", seed=1), made("second", seed=2)
    for change, says in (
        ({"fingerprint": "ab" * 32}, "another fingerprint"),
        ({"tiers": ("none", "normal")}, "other tiers"),
    ):
        with pytest.raises(RecordsError, match=f"collected with {says}; collect both alike"):
            split_questions(first, second, made(says.replace(" ", "-"), seed=3, **change))
    twin = made("twin", seed=2)
    with pytest.raises(
        RecordsError, match="6 questions are in two collections; a guarantee needs questions of its own"
    ):
        split_questions(first, second, twin)
    with pytest.raises(RecordsError, match="6 questions are in two collections"):
        split_questions(first, second, first)
    for one in ((second, None), (None, second)):
        with pytest.raises(OptionError, match="accepted: both, or neither to divide one collection"):
            split_questions(first, *one)


def test_certificates_need_the_base_tier_alone(tmp_path: Path) -> None:
    """Tiers are chosen by the other two collections, so that calibrating on many questions stays cheap."""
    fit, calibrate, test = (
        write_planted(tmp_path / name, planted(n, seed=seed, tiers=tiers), 1)
        for name, n, seed, tiers in (
            ("fit", N, 1, ("none", "normal")),
            ("calibrate", 120, 2, ("normal",)),
            ("test", 60, 3, ("none", "normal")),
        )
    )
    report = calibrate_into(tmp_path / "out", split_questions(fit, calibrate, test), CalibrationSettings(alpha=ALPHA))
    assert load_stop_rule(tmp_path / "out" / "readiness", MARK, trials=False).certificate.n == 120
    assert report["difficulty"]["choice"]["n"] == 60


def test_features_of_another_version_are_refused(tmp_path: Path) -> None:
    records = planted(6)
    old = RecordTable({**records.plan, "features": records.plan["features"][::-1]}, records.columns, records.texts)
    with pytest.raises(RecordsError, match="other features than this version of tersely makes; collect anew"):
        split_questions(write_planted(tmp_path, old, 1), None, None)


# -- live traffic, and the command ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def traffic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_planted(tmp_path_factory.mktemp("live") / "data", planted(N, live=True, tiers=("normal",)), 4)


def test_live_traffic_teaches_readiness_alone(
    traffic: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["calibrate", str(traffic), "--out", str(tmp_path / "out"), "--alpha", str(ALPHA)]
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert "difficulty: not learnt, nobody knows which answers are right here" in text
    assert "raw" not in text, "no trial was asked, so there is no confidence to compare with"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["readiness"]
    stored = load_stop_rule(tmp_path / "out" / "readiness", MARK, trials=None)
    assert stored.rule.paid is None
    assert stored.threshold is not None
    assert stored.certificate.saved > 0.1
    assert stored.rule.free.classes == ("hopeful", "ready")


def test_a_curve_cannot_be_drawn_of_live_traffic(traffic: Path, tmp_path: Path, capsys: Any) -> None:
    said = refused(capsys, "calibrate", traffic, "--out", tmp_path / "out", "--curve", tmp_path / "curve.jpg")
    assert "accepted: .png or .svg" in said


def test_the_report_says_what_follows(learnt: Learnt) -> None:
    text = as_text(learnt.report)
    assert text.startswith("planted\n")
    for part in (
        "difficulty, from hidden layer -1, learnt from ",
        "readiness, from hidden layer -1, on ",
        "  none fails: AUROC 0.9",
        "the probe adds to ",
        "effort auto on ",
        f"(asked: {ALPHA:.1%})",
        "raw trial confidence: AUROC 0.",
        "certificate, free evidence: stops at score >= ",
        "% are harmed, as asked",
    ):
        assert part in text, part
    saved = learnt.report["readiness"]
    gain = max(saved["free"]["saved"], saved["trials"]["saved"]) - saved["confidence"]["saved"]
    assert text.endswith(f"saves {gain * 100:+.1f} points of tokens against raw confidence, net of all overhead")


def test_a_report_without_a_certificate_says_never(learnt: Learnt) -> None:
    parts = {name: read_boundaries(*learnt_part(learnt, name)) for name in ("tune", "calibrate", "test")}
    rule = load_stop_rule(learnt.out / "readiness", MARK, trials=False).rule
    rules: tuple[StopRule, StopRule] = (rule, rule)
    made = readiness.list_certificates(rules, parts["tune"], parts["calibrate"], 0.005, 0.05)
    assert all(c.threshold is None and c.shortfall > 0 for c in made.values())
    found = readiness.examine(rules, made, parts["test"], parts["tune"], parts["calibrate"], 0.005, 0.05)
    assert (found["free"]["threshold"], found["free"]["harm"], found["free"]["saved"]) == (None, 0.0, 0.0)
    found["certificates"] = {name: str(c) for name, c in made.items()}
    found["layer"] = -1
    text = as_text({**learnt.report, "readiness": found, "alpha": 0.005})
    assert "never stops: saves 0.0% net" in text
    assert "more are needed" in text


def learnt_part(learnt: Learnt, name: str) -> Any:
    records, keep = learnt.parts.keep(name)
    return records, -1, "normal", keep


def test_json_is_one_strict_object(
    learnt: Learnt, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    unsure = {**learnt.report, "readiness": {**learnt.report["readiness"], "harmless": float("nan")}}
    folder = write_planted(tmp_path / "data", planted(6), 1)
    monkeypatch.setattr(run, "calibrate_into", lambda *_: unsure)
    assert main(["calibrate", str(folder), "--out", str(tmp_path / "out"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out, parse_constant=lambda name: pytest.fail(name))
    assert found["readiness"].pop("harmless") is None
    del unsure["readiness"]["harmless"]
    assert found == json.loads(json.dumps(unsure))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["{data}"], "--out"),
        (["{data}", "--out", "{tmp}/out"], "the part to learn has 3 questions; accepted: 40 or more"),
        (["{tmp}/nowhere", "--out", "{tmp}/out"], "plan.json cannot be read"),
        (["{data}", "--out", "{tmp}/out", "--alpha", "2"], "alpha is 2.0; accepted: a share"),
        (["{data}", "--out", "{tmp}/out", "--delta", "0"], "delta is 0.0; accepted: a share"),
        (["{data}", "--out", "{tmp}/out", "--layer", "3"], "unknown layer '3'; accepted: -1"),
        (["{data}", "--out", "{tmp}/out", "--test", "{data}"], "accepted: both, or neither"),
        (["{data}", "--out", "{tmp}/out", "--test", "{data}", "--calibrate", "{data}"], "in two collections"),
        (["{data}", "--out", "{tmp}/out", "--labels", "difadapt"], "did you mean 'diffadapt'?"),
    ],
)
def test_bad_options(arguments: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_planted(tmp_path / "data", planted(12), 1)
    assert says in refused(capsys, "calibrate", *(a.format(data=data, tmp=tmp_path) for a in arguments))
    assert not (tmp_path / "out").exists()
