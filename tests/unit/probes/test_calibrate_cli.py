"""`tersely calibrate`: the command and its report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tersely.cli.app import main
from tersely.probes.calibrate import readiness, run
from tersely.probes.calibrate.data import read_boundaries
from tersely.probes.calibrate.run import format_report
from tersely.probes.io import load_stop_rule
from tersely.probes.rule import StopRule

from ...support.commands import refused
from ...support.planted_calibration import ALPHA, FINGERPRINT, Calibration, N
from ...support.planted_records import planted, write_planted

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def traffic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_planted(tmp_path_factory.mktemp("live") / "data", planted(N, live=True, tiers=("normal",)), 4)


def test_only_readiness_is_trained_on_live_traffic(
    traffic: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["calibrate", str(traffic), "--out", str(tmp_path / "out"), "--alpha", str(ALPHA)]
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert "difficulty: not trained" in text
    assert "raw" not in text, "without trials there is no confidence to compare with"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["readiness"]
    stored = load_stop_rule(tmp_path / "out" / "readiness", FINGERPRINT, trials=None)
    assert stored.rule.paid is None
    assert stored.threshold is not None
    assert stored.certificate.saved > 0.1
    assert stored.rule.free.classes == ("hopeful", "ready")


def test_a_curve_in_an_unknown_format_is_refused(traffic: Path, tmp_path: Path, capsys: Any) -> None:
    message = refused(capsys, "calibrate", traffic, "--out", tmp_path / "out", "--curve", tmp_path / "curve.jpg")
    assert ".jpg" in message
    assert not (tmp_path / "out").exists()


def test_the_report_has_all_figures(calibration: Calibration) -> None:
    text = format_report(calibration.report)
    assert text.startswith("planted\n")
    for part in (
        "difficulty, from hidden layer -1",
        "readiness, from hidden layer -1",
        "  none fails: AUROC 0.9",
        "the probe adds to ",
        "effort auto on ",
        f"{ALPHA:.1%}",
        "raw trial confidence: AUROC 0.",
        "certificate, free evidence: stops at score >= ",
    ):
        assert part in text, part
    saved = calibration.report["readiness"]
    gain = max(saved["free"]["saved"], saved["trials"]["saved"]) - saved["confidence"]["saved"]
    assert f"{gain * 100:+.1f} points" in text.splitlines()[-1]


def test_a_report_without_a_certified_threshold(calibration: Calibration) -> None:
    parts = {name: read_boundaries(*read_part(calibration, name)) for name in ("tune", "calibrate", "test")}
    rule = load_stop_rule(calibration.out / "readiness", FINGERPRINT, trials=False).rule
    rules: tuple[StopRule, StopRule] = (rule, rule)
    made = readiness.certify_rules(rules, parts["tune"], parts["calibrate"], 0.005, 0.05)
    assert all(c.threshold is None and c.shortfall > 0 for c in made.values())
    found = readiness.evaluate_rules(rules, made, parts["test"], parts["tune"], parts["calibrate"], 0.005, 0.05)
    assert (found["free"]["threshold"], found["free"]["harm"], found["free"]["saved"]) == (None, 0.0, 0.0)
    found["certificates"] = {name: str(c) for name, c in made.items()}
    found["layer"] = -1
    text = format_report({**calibration.report, "readiness": found, "alpha": 0.005})
    assert "never stops: saves 0.0% net" in text


def read_part(calibration: Calibration, name: str) -> Any:
    records, keep = calibration.parts.select(name)
    return records, -1, "normal", keep


def test_the_json_report_is_standard_json(
    calibration: Calibration, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    unsure = {**calibration.report, "readiness": {**calibration.report["readiness"], "harmless": float("nan")}}
    folder = write_planted(tmp_path / "data", planted(6), 1)
    monkeypatch.setattr(run, "calibrate_into", lambda *_: unsure)
    assert main(["calibrate", str(folder), "--out", str(tmp_path / "out"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out, parse_constant=lambda name: pytest.fail(name))
    assert found["readiness"].pop("harmless") is None
    del unsure["readiness"]["harmless"]
    assert found == json.loads(json.dumps(unsure))


@pytest.mark.parametrize(
    ("arguments", "value"),
    [
        (["{data}"], "--out"),
        (["{data}", "--out", "{tmp}/out"], "'learn'"),
        (["{tmp}/nowhere", "--out", "{tmp}/out"], "nowhere"),
        (["{data}", "--out", "{tmp}/out", "--alpha", "2"], "2.0"),
        (["{data}", "--out", "{tmp}/out", "--delta", "0"], "0.0"),
        (["{data}", "--out", "{tmp}/out", "--layer", "3"], "'3'"),
        (["{data}", "--out", "{tmp}/out", "--test", "{data}"], "--calibrate"),
        (["{data}", "--out", "{tmp}/out", "--test", "{data}", "--calibrate", "{data}"], "12 questions"),
        (["{data}", "--out", "{tmp}/out", "--labels", "difadapt"], "'diffadapt'"),
    ],
)
def test_invalid_options_are_refused(
    arguments: list[str], value: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_planted(tmp_path / "data", planted(12), 1)
    assert value in refused(capsys, "calibrate", *(a.format(data=data, tmp=tmp_path) for a in arguments))
    assert not (tmp_path / "out").exists()
