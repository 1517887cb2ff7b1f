"""`tersely report`: the page, tables and charts that it writes, and the results that it refuses."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from tersely.cli.app import main
from tersely.evaluation.report import page
from tersely.evaluation.report.formatting import MINUS, SPACE
from tersely.evaluation.report.page import draw_charts, report_page
from tersely.evaluation.report.schema import BenchmarkResult, load_result

from ...support.commands import refused
from ...support.disk import files_no_longer_than
from ...support.planted_bench import CUT, HOSTILE, RUN, bare, planted, write_planted

FILES = ["arms.csv", "calibration.png", "levels.png", "pareto.png", "report.html", "rows.csv"]
Change = Callable[[dict[str, Any]], object]


def result(**changes: Any) -> BenchmarkResult:
    return BenchmarkResult.model_validate_json(json.dumps(planted(**changes)))


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves the charts out of the page, and of files all but a sign of ours: saving them takes most of the time."""
    monkeypatch.setattr(page, "draw_pictures", lambda result: {})
    monkeypatch.setattr(page.Chart, "to_png", lambda *_: f"PNG {page._SOFTWARE}".encode())


def page_text(html: str) -> str:
    """Return the text of a page with single spaces; fail on elements that our pages must not have."""
    texts = list[str]()

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            assert tag not in ("script", "iframe", "object", "form")
            names = {name: value or "" for name, value in attrs}
            assert not [name for name in names if name.startswith("on") or name == "style"]
            assert names.get("href", "#").startswith(("#", "data:,"))
            for name in ("src", "srcset"):
                assert names.get(name, "data:image/svg+xml;base64,").startswith("data:image/svg+xml;base64,")
            texts.append(" " if tag == "small" else "")

        def handle_data(self, data: str) -> None:
            texts.append(data)

    Reader(convert_charrefs=True).feed(html)
    return " ".join("".join(texts).split())


def ends(pair: list[float], form: str) -> str:
    return " to ".join(f"{100 * end:{form}}" for end in pair)


def test_a_report_holds_the_numbers_of_the_benchmark(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "report"
    path = write_planted(tmp_path / "r.json")
    assert main(["report", str(path), "--out", str(out)]) == 0
    assert sorted(p.name for p in out.iterdir()) == FILES
    assert capsys.readouterr().out.startswith(f"{out}: report.html, arms.csv, rows.csv, pareto.png")
    given = planted()
    with (out / "arms.csv").open(newline="") as file:
        arms = list(csv.DictReader(file))
    assert [arm["name"] for arm in arms] == [*RUN, "fixed-budget", *CUT]
    for arm, line in zip(given["arms"], arms, strict=True):
        assert float(line["accuracy_ci.high"]) == arm["accuracy_ci"][1]
        assert float(line["tokens.overhead"]) == arm["tokens"]["overhead"]
        assert float(line["per_level.3.accuracy"]) == arm["per_level"]["3"]["accuracy"]
        assert line["saving_ci.low"] == ("" if arm["saving_ci"] is None else str(arm["saving_ci"][0]))
    with (out / "rows.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == [row["id"] for row in given["rows"]]
    assert sum(float(row["total"]) for row in rows if row["arm"] == "balanced") / 200 == pytest.approx(
        given["arms"][1]["tokens"]["total"]
    )
    for name in ("pareto", "levels", "calibration"):
        assert (out / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_page_has_the_verdict_the_numbers_and_the_command() -> None:
    text = page_text(report_page([("r.json", result())], "9.9")).replace(SPACE, " ").replace(MINUS, "-")
    arm = planted()["arms"][1]
    assert f"✓ Non-inferior and saving balanced takes {100 * arm['saving']:.1f} % fewer tokens than full" in text
    assert "loses no more than 3 points of accuracy" in text
    cells = [
        f"{100 * arm['accuracy']:.1f} % {ends(arm['accuracy_ci'], '.1f')}",
        f"{100 * arm['delta_accuracy']:+.1f} {ends(arm['delta_accuracy_ci'], '+.1f')} {arm['mcnemar_p']:.3f}",
        f"{100 * arm['saving']:.1f} % {ends(arm['saving_ci'], '.1f')}",
    ]
    assert f"balanced judged {' '.join(cells)}" in text
    kinds = " ".join(f"{arm['tokens'][kind]:.1f}" for kind in ("thinking", "answer", "overhead", "total"))
    helped = f"{100 * arm['help']:.1f} % at least {100 * arm['help_lower']:.1f}"
    assert f"{helped} {kinds} careful" in text
    assert "tersely bench tersely-tiny-large --arms full,balanced,careful,fast,no-think --limit 200" in text
    for split in planted()["splits"].values():
        assert split["sha256"] in text
    assert "left out" not in text and "not known" not in text
    assert "The machine was busy, so seconds are approximate." in text


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"verdict": "inferior"}, "balanced loses more than 3 points of accuracy against full."),
        ({"verdict": "not saving"}, "balanced saves no tokens against full."),
        (
            {"verdict": "inconclusive", "needed_n": 1480, "margin": 0.005},
            "200 questions cannot decide whether balanced loses more than 0.5 points of accuracy against full; "
            "about 1,480 would.",
        ),
        (
            {"verdict": "inconclusive", "needed_n": None, "margin": 0.005},
            "against full: the difference is exactly at the margin.",
        ),
    ],
)
@pytest.mark.usefixtures("no_pictures")
def test_every_verdict_is_a_sentence(changes: dict[str, Any], sentence: str) -> None:
    assert sentence in page_text(report_page([("r.json", result(**changes))], "1")).replace(SPACE, " ")


@pytest.mark.usefixtures("no_pictures")
def test_inconclusive_verdict_says_what_is_undecided() -> None:
    given = planted(verdict="inconclusive")
    given["arms"][1]["delta_total_ci"] = [-9.0, 1.0]
    undecided = BenchmarkResult.model_validate_json(json.dumps(given))
    assert "whether balanced saves tokens against full" in page_text(report_page([("r", undecided)], "1"))
    given["arms"][1]["delta_accuracy_ci"] = [-0.2, 0.1]
    undecided = BenchmarkResult.model_validate_json(json.dumps(given))
    text = page_text(report_page([("r", undecided)], "1")).replace(SPACE, " ")
    assert "whether balanced loses more than 3 points of accuracy or whether it saves tokens against full" in text


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_missing_parts_are_left_out_and_listed(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main(["report", str(write_planted(tmp_path / "whole.json")), "--out", str(out)]) == 0
    (out / "levels-of-mine.png").write_bytes(b"not our picture")
    path = tmp_path / "bare.json"
    path.write_text(json.dumps(bare()))
    assert main(["report", str(path), "--out", str(out)]) == 0
    kept = ["arms.csv", "levels-of-mine.png", "pareto.png", "report.html", "rows.csv"]
    assert sorted(p.name for p in out.iterdir()) == kept  # our stale charts are gone
    text = page_text((out / "report.html").read_text(encoding="utf-8"))
    for lacks in (
        "fixed budgets",
        "no levels",
        "calibration chart",
        "Wall times",
        "Prices",
        "header only",
    ):
        assert lacks in text
    assert "Calibration" not in text and "By level" not in text and "At equal accuracy" not in text
    assert (out / "rows.csv").read_text().count("\n") == 1


def test_arms_without_tokens(tmp_path: Path) -> None:
    silent = bare()
    for arm in silent["arms"]:
        arm["tokens"] = dict.fromkeys(arm["tokens"], 0)
    path = tmp_path / "silent.json"
    path.write_text(json.dumps(silent))
    assert "no arm generated any tokens" in page_text(report_page([("s", load_result(path))], "1"))


@pytest.mark.slow
def test_markup_in_a_result_is_escaped() -> None:
    given = json.loads(json.dumps(planted()).replace("balanced", "BALANCED"))
    named = json.loads(json.dumps(given).replace("BALANCED", json.dumps(HOSTILE)[1:-1]))
    named |= dict.fromkeys(("model", "machine", "engine", "effort", "tersely", "commit", "date"), HOSTILE)
    named |= {
        "notes": [HOSTILE],
        "command": ["tersely", HOSTILE],
        "tasks": [HOSTILE],
        "splits": {HOSTILE: named["splits"]["fit"]},
    }
    named["answers"]["method"] = HOSTILE
    hostile = BenchmarkResult.model_validate_json(json.dumps(named))
    html = report_page([(HOSTILE, hostile), ("other", result())], HOSTILE)
    assert page_text(html).count("{{ 7 * 7 }}") > 20
    for chart in draw_charts(hostile).values():
        assert chart.to_png(HOSTILE, HOSTILE).startswith(b"\x89PNG")
        assert HOSTILE.encode() not in chart.to_svg()


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_several_results_are_distinguished(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    paths = [write_planted(tmp_path / name, model=model) for name, model in (("r.json", "m1"), ("b/r.json", "m2"))]
    out = tmp_path / "out"
    assert main(["report", *map(str, paths), "--out", str(out)]) == 0
    assert {p.name for p in out.glob("pareto*")} == {"pareto-1.png", "pareto-2.png"}
    html = (out / "report.html").read_text(encoding="utf-8")
    assert "All results" in page_text(html)
    for i in (1, 2):
        assert f'href="#r{i}">m{i} on tiny' in html and f'<article id="r{i}"' in html
    with (out / "arms.csv").open(newline="") as file:
        assert {line["result"] for line in csv.DictReader(file)} == set(map(str, paths))


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ('{\n "arms": [],\n oops}', "not valid JSON (key must be a string at line 3 column 2)"),
        ("[1]", "got [1]; accepted: an object"),
        ('{"version": 1, "id": "a"}', "tersely bench --out"),
        (lambda r: r.pop("verdict"), "'verdict'"),
        (lambda r: r.update(jugded="x"), "'jugded'; did you mean 'judged'?"),
        (lambda r: r["arms"][1].update(acuracy=1), "'arms[1].acuracy'; did you mean 'accuracy'?"),
        (lambda r: r["arms"][2].update(accuracy="0.5"), "arms[2].accuracy is '0.5'; accepted: a valid number"),
        (lambda r: r["arms"][2].update(accuracy=1.5), "arms[2].accuracy is 1.5"),
        (lambda r: r["arms"][2].update(saving=float("nan")), "arms[2].saving is nan"),
        (lambda r: r.update(judged="balancd"), "judged is 'balancd'; did you mean 'balanced'?"),
        (lambda r: r.update(judged="full"), "'full'"),
        (lambda r: r["arms"][1].update(saving_ci=None), "saving_ci"),
        (lambda r: r["arms"][2].update(name="full"), "'full'"),
        (lambda r: r.update(verdict="good"), "verdict is 'good'; accepted: 'non-inferior and saving'"),
        (lambda r: r.update(command=[]), "command is []"),
    ],
)
def test_invalid_result_file(
    given: str | Change, named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, whole = tmp_path / "bad.json", planted(rows=[])
    if isinstance(given, str):
        path.write_text(given)
    else:
        given(whole)
        path.write_text(json.dumps(whole))
    error = refused(capsys, "report", path, "--out", tmp_path / "out")
    assert named in error and "bad.json" in error
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("no_pictures")
def test_other_errors_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_planted(tmp_path / "r.json", rows=[])
    assert "none.json" in refused(capsys, "report", tmp_path / "none.json", "--out", tmp_path / "out")
    assert "--out" in refused(capsys, "report", path)
    assert "cannot be created" in refused(capsys, "report", path, "--out", path)
    assert "/proc/nowhere" in refused(capsys, "report", path, "--out", "/proc/nowhere")
    (tmp_path / "taken" / "arms.csv").mkdir(parents=True)
    assert "arms.csv cannot be written" in refused(capsys, "report", path, "--out", tmp_path / "taken")
    (tmp_path / "mine").mkdir()
    (mine := tmp_path / "mine" / "rows.csv").write_text("mine")
    assert "rows.csv was not written by tersely" in refused(capsys, "report", path, "--out", tmp_path / "mine")
    assert [one.name for one in mine.parent.iterdir()] == ["rows.csv"]
    binary = tmp_path / "binary.json"
    binary.write_bytes(b"\x89PNG\xff")
    assert "UTF-8" in refused(capsys, "report", binary, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_without_matplotlib_there_are_tables_and_no_charts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["report", str(write_planted(tmp_path / "r.json")), "--out", str(tmp_path / "out")]) == 0
    assert "tersely[bench]" in capsys.readouterr().err
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["arms.csv", "report.html", "rows.csv"]


@pytest.mark.usefixtures("no_pictures")
def test_a_full_disk_leaves_the_earlier_report_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = write_planted(tmp_path / "r.json"), tmp_path / "out"
    out.mkdir()
    (out / "report.html").write_text(earlier := '<meta name="generator" content="tersely report">')
    with files_no_longer_than(10_000):
        assert f"{out}/report.html cannot be written: File too large" in refused(capsys, "report", path, "--out", out)
    assert [p.read_text() for p in out.iterdir()] == [earlier]


@pytest.mark.slow
def test_help_imports_no_model_library(tmp_path: Path) -> None:
    code = (
        "import sys; from tersely.cli.app import main\n"
        "assert main(['report', '--help']) == 0 and main(['report', 'none.json', '--out', 'x']) == 2\n"
        "assert not {'torch', 'transformers', 'matplotlib'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert "Usage: tersely report" in done.stdout and list(tmp_path.iterdir()) == []
