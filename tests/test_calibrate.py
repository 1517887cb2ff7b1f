"""From collected data to certified probes, on planted data: what is there is found, what is not is not promised."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tersely.cli.app import main
from tersely.errors import OptionError, TerselyError
from tersely.probes.artifact import ArtifactError
from tersely.probes.calibrate import readiness, run
from tersely.probes.calibrate.controls import by_length, by_words, quality
from tersely.probes.calibrate.data import Boundaries, boundaries_of, joined, part_of, questions_of
from tersely.probes.calibrate.difficulty import fit_difficulty
from tersely.probes.calibrate.report import as_text
from tersely.probes.calibrate.run import FEWEST, Parts, Settings, best_layer, calibrate_into, parts_of
from tersely.probes.records import UNKNOWN, Records, RecordsError
from tersely.probes.risk import Outcomes, certify, curve, grid
from tersely.probes.rule import StopRule
from tersely.probes.stored import load_stop_rule, load_tier_probe

from .commands import refused
from .planted_records import CLOSING, changed, planted, rows_of, write_planted

MARK = "fe" * 32
N = 460
ALPHA = 0.1


class Learnt:
    """One calibration of one planted collection, which many tests look at."""

    def __init__(self, out: Path) -> None:
        self.out, self.records = out, planted(N)
        self.parts = Parts(self.records, self.records, self.records, True)
        self.said: list[str] = []
        self.report = calibrate_into(out, self.parts, Settings(alpha=ALPHA), self.said.append)

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
    test = boundaries_of(records, -1, keep=keep)
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
    order = grid(readiness.walked(rule, boundaries_of(records, -1, keep=keep)).score)

    def outcomes(mask: Any) -> Outcomes:
        part = boundaries_of(fresh, -1, keep=mask)
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


# -- outcomes ------------------------------------------------------------------------------------------------------


def stopped(b: Boundaries, score: Any, paid: Any, threshold: float) -> tuple[float, float]:
    """Harm rate and share of tokens saved, rollout by rollout."""
    harms, spent = 0, 0
    for rollout, full in enumerate(b.full.tolist()):
        costs, total = 0, full
        for place in np.flatnonzero(b.rollout == rollout).tolist():
            costs = int(paid[place])
            if score[place] >= threshold:
                total = int(b.end[place]) + CLOSING + int(b.answer[rollout])
                harms += bool(b.final[place] and not b.now[place])
                break
        spent += total + costs
    return harms / len(b.full), 1 - spent / b.full.sum()


@pytest.mark.parametrize("costly", [False, True])
def test_outcomes_are_those_of_stopping_one_by_one(costly: bool) -> None:
    records = planted(60, seed=5)
    bare = records["boundaries.rollout"] % 5 != 0  # some rollouts have no boundary
    b = boundaries_of(rows_of(records, "boundaries", bare), -1)
    rng = np.random.default_rng(0)
    score, asked = np.round(rng.random(len(b)), 1), rng.random(len(b)) < 0.5
    paid = np.zeros(len(b), np.int64)
    for rollout in np.unique(b.rollout):
        mine = b.rollout == rollout
        paid[mine] = np.cumsum(np.where(asked, b.trial, 0)[mine])
    made = b.outcomes(score, paid if costly else None)
    assert made.n == len(b.full) == 60
    for threshold in (0.0, 0.2, 0.45, 0.8, 1.0):
        harm, saved = curve(made, [threshold])
        expected = stopped(b, score, paid if costly else np.zeros(len(b)), threshold)
        assert (float(harm[0]), float(saved[0])) == pytest.approx(expected), threshold
    assert curve(made, [0.0])[0][0] > 0, "stopping at once does harm"


def test_boundaries_are_those_of_the_tier_and_rollout_asked_for() -> None:
    records = planted(30, seed=6, rollouts=2)
    tier = records["rollouts.tier"][records["boundaries.rollout"]]
    number = records["rollouts.number"][records["boundaries.rollout"]]
    normal = boundaries_of(records, -1)
    assert len(normal) == ((tier == 2) & (number == 0)).sum()
    assert len(boundaries_of(records, -1, "hard", number=None)) == (tier == 3).sum()
    kept = np.arange(30) < 7
    few = boundaries_of(records, -1, keep=kept)
    assert set(few.question) == set(records.texts["hash"][:7])
    assert len(few.full) == 7
    assert np.unique(few.rollout).tolist() == list(range(7))
    both = joined([normal, few])
    assert len(both) == len(normal) + len(few)
    assert both.full.tolist() == normal.full.tolist() + few.full.tolist()
    assert both.rollout[len(normal) :].tolist() == (few.rollout + 30).tolist()
    with pytest.raises(OptionError, match=r"unknown tier 'normla'; did you mean 'normal'\?"):
        boundaries_of(records, -1, "normla")


def test_where_nobody_knows_the_last_answer_stands_for_the_right_one() -> None:
    live, known = planted(40, seed=7, live=True), planted(40, seed=7, solved=0.6)
    blind, seen = boundaries_of(live, -1), boundaries_of(known, -1)
    assert blind.final.all()
    assert not seen.final.all()
    owner = live["rollouts.tier"][live["boundaries.rollout"]] == 2
    assert blind.now.tolist() == live["boundaries.same"][owner].astype(bool).tolist()
    assert 0 < blind.now.mean() < 1


def test_questions_have_what_came_of_each_tier() -> None:
    records = planted(20, seed=8, rollouts=3)
    found = questions_of(records, -1, np.arange(20) >= 5)
    assert (len(found), found.right.shape) == (15, (15, 4))
    mine = (records["rollouts.question"] == 5) & (records["rollouts.tier"] == 3)
    assert mine.sum() == 3
    assert found.right[0, 3] == pytest.approx(records["rollouts.right"][mine].mean())
    spent = (records["rollouts.thinking"] + records["rollouts.answer"])[mine]
    assert found.tokens[0, 3] == pytest.approx(spent.mean())
    with pytest.raises(RecordsError, match="some questions lack a tier; go on with the collection until it is whole"):
        questions_of(rows_of(records, "rollouts", ~mine), -1)


def test_quality_by_hand() -> None:
    truth = np.array([False] * 50 + [True] * 50)
    perfect = quality(truth, truth.astype(float))
    assert (perfect.auroc, perfect.brier, perfect.ece, perfect.n, perfect.share) == (1, 0, 0, 100, 0.5)
    blind = quality(truth, np.full(100, 0.8))
    assert (blind.auroc, blind.low < 0.5 < blind.high) == (0.5, True)
    assert blind.brier == pytest.approx(0.5 * 0.04 + 0.5 * 0.64)
    assert quality(np.resize([False, True], 100), np.full(100, 0.8)).ece == pytest.approx(0.3)
    assert np.isnan(quality(truth[:50], np.zeros(50)).auroc)


def test_controls_see_what_is_theirs_alone() -> None:
    rng = np.random.default_rng(0)
    truth = rng.random(300) < 0.5
    words = np.where(truth, 20, 10) + rng.integers(0, 8, 300)
    texts = [("hard " if yes else "easy ") + " ".join(rng.choice(list("abcdef"), 5)) for yes in truth]
    fit, test = slice(0, 200), slice(200, 300)
    by_size = by_length(words[fit], truth[fit], words[test])
    by_text = by_words(texts[fit], truth[fit], texts[test])
    assert quality(truth[test], by_size).auroc > 0.95
    assert quality(truth[test], by_text).auroc > 0.95
    alone = np.arange(200) == 7
    assert by_words(texts[fit], alone, texts[test]).tolist() == [1 / 200] * 100, "one question teaches no words"


# -- parts of the data ---------------------------------------------------------------------------------------------


def test_one_collection_is_divided_by_question(learnt: Learnt) -> None:
    names = ("learn", "tune", "calibrate", "test")
    sizes = {name: len(learnt.hashes(name)) for name in names}
    assert sum(sizes.values()) == N == len(learnt.hashes(*names)), "disjoint, and nothing left out"
    shares = {"learn": 6, "tune": 2, "calibrate": 5, "test": 3}
    assert all(abs(sizes[name] - N * shares[name] / 16) < 3 * N**0.5 for name in names)
    hashes = learnt.records.texts["hash"]
    assert {part_of(h) for h in hashes} == {"fit", "calibrate", "test"}
    assert learnt.hashes("test") == {h for h in hashes if part_of(h) == "test"}


def test_separate_collections_serve_as_they_are(tmp_path: Path) -> None:
    folders = [write_planted(tmp_path / str(seed), planted(30, seed=seed), 1) for seed in range(3)]
    parts = parts_of(*folders)
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
            parts_of(first, second, made(says.replace(" ", "-"), seed=3, **change))
    twin = made("twin", seed=2)
    with pytest.raises(
        RecordsError, match="6 questions are in two collections; a guarantee needs questions of its own"
    ):
        parts_of(first, second, twin)
    with pytest.raises(RecordsError, match="6 questions are in two collections"):
        parts_of(first, second, first)
    for one in ((second, None), (None, second)):
        with pytest.raises(OptionError, match="accepted: both, or neither to divide one collection"):
            parts_of(first, *one)


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
    report = calibrate_into(tmp_path / "out", parts_of(fit, calibrate, test), Settings(alpha=ALPHA))
    assert load_stop_rule(tmp_path / "out" / "readiness", MARK, trials=False).certificate.n == 120
    assert report["difficulty"]["choice"]["n"] == 60


def test_features_of_another_version_are_refused(tmp_path: Path) -> None:
    records = planted(6)
    old = Records({**records.plan, "features": records.plan["features"][::-1]}, records.columns, records.texts)
    with pytest.raises(RecordsError, match="other features than this version of tersely makes; collect anew"):
        parts_of(write_planted(tmp_path, old, 1), None, None)


# -- what cannot be learnt from ------------------------------------------------------------------------------------


def whole(records: Records) -> Parts:
    return Parts(records, records, records, True)


def test_too_few_questions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        RecordsError, match=rf"the part to learn has \d+ questions; accepted: {FEWEST} or more; collect"
    ):
        calibrate_into(tmp_path, whole(planted(60)), Settings())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("solved", [0.0, 1.0])
def test_questions_that_are_all_alike_teach_nothing(tmp_path: Path, solved: float) -> None:
    records = planted(N, solved=solved)
    with pytest.raises(OptionError, match="there is nothing to learn; collect harder"):
        calibrate_into(tmp_path, whole(records), Settings())
    both = (questions_of(records, -1),) * 2
    with pytest.raises(OptionError, match=r"tier 'none' is the cheapest that will do for all \d+ questions, so there"):
        fit_difficulty(both, both, -1, 0.01)


def test_thinking_that_repairs_nothing_teaches_nothing(tmp_path: Path) -> None:
    records = planted(N, live=True)
    settled = changed(records, boundaries__same=np.ones_like(records["boundaries.same"]))
    with pytest.raises(
        OptionError, match=r"in none of these rollouts did thinking on repair .*collect harder questions"
    ):
        calibrate_into(tmp_path, whole(settled), Settings())


@pytest.mark.parametrize("table", ["questions", "boundaries"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_states_that_are_no_numbers_are_refused(table: str, value: float) -> None:
    records = planted(20, layers=(2, -1))
    states = records[f"{table}.state.2"].copy()
    states[3, 4] = value
    broken = changed(records, **{f"{table}__state.2": states})
    take = questions_of if table == "questions" else boundaries_of
    with pytest.raises(RecordsError, match="layer 2 hold NaN or infinity; take another layer, or collect in float32"):
        take(broken, 2)
    take(broken, -1)


def test_a_layer_that_was_not_collected_is_named() -> None:
    records = planted(10, layers=(2, 12))
    with pytest.raises(OptionError, match=r"unknown layer '1'; did you mean '12'\? accepted: 2, 12"):
        best_layer(records, 1, lambda layer: 0.0)
    with pytest.raises(OptionError, match="unknown layer '-1'"):
        questions_of(records, -1)


def test_the_layer_with_the_least_loss_is_taken_unless_one_is_wanted() -> None:
    records, asked = planted(10, layers=(2, 3, 12)), list[int]()

    def loss(layer: int) -> float:
        asked.append(layer)
        return {2: 0.5, 3: 0.1, 12: 0.3}[layer]

    assert best_layer(records, None, loss) == 3
    assert asked == [2, 3, 12]
    assert best_layer(records, 12, loss) == 12
    assert best_layer(planted(10), None, loss) == -1
    assert asked == [2, 3, 12], "nothing is fitted where there is no choice"


def test_another_layer_has_its_own_states() -> None:
    records = planted(10, layers=(2, -1))
    one, other = questions_of(records, 2), boundaries_of(records, 2)
    assert np.array_equal(one.state, records["questions.state.2"])
    assert np.array_equal(other.rows[:, -8:], boundaries_of(records, -1).rows[:, :-9:-1])


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"alpha": 0.0}, "alpha is 0.0; accepted: a share above 0 and below 1"),
        ({"alpha": 1.0}, "alpha is 1.0"),
        ({"alpha": float("nan")}, "alpha is nan"),
        ({"delta": 1.5}, "delta is 1.5"),
        ({"margin": -0.1}, "margin is -0.1"),
        ({"labels": "tier"}, "unknown labels 'tier'; did you mean 'tiers'"),
    ],
)
def test_settings_out_of_range_are_refused_before_any_work(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(OptionError, match=says):
        Settings(**settings)


@pytest.mark.parametrize("live", [False, True])
def test_a_collection_without_the_base_tier_is_refused(tmp_path: Path, live: bool) -> None:
    records = planted(N, tiers=("none", "easy"), live=live)
    with pytest.raises(TerselyError, match="no rollout of tier 'normal' here"):
        calibrate_into(tmp_path, whole(records), Settings())


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
    parts = {name: boundaries_of(*learnt_part(learnt, name)) for name in ("tune", "calibrate", "test")}
    rule = load_stop_rule(learnt.out / "readiness", MARK, trials=False).rule
    rules: tuple[StopRule, StopRule] = (rule, rule)
    made = readiness.certificates_of(rules, parts["tune"], parts["calibrate"], 0.005, 0.05)
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


def test_rollouts_whose_right_answer_is_unknown_teach_no_difficulty() -> None:
    records = planted(10)
    right = records["rollouts.right"].copy()
    right[3] = UNKNOWN
    with pytest.raises(RecordsError, match="nobody knows which answers are right here"):
        questions_of(changed(records, rollouts__right=right), -1)


def test_calibrations_with_the_same_seed_are_the_same() -> None:
    records = planted(N, seed=3, tiers=("none", "normal"))
    sets = [questions_of(records, -1, whole(records).keep(name)[1]) for name in ("learn", "tune")]
    one, other = (fit_difficulty((sets[0], sets[0]), (sets[1], sets[1]), -1, 0.01, seed=5) for _ in range(2))
    assert one.network == other.network
    assert one.price == other.price
    assert replace(one, table=other.table).choose(sets[0].state[0]) == other.choose(sets[0].state[0])
