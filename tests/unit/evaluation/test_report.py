"""`tersely report`: what it reads, what it refuses, and the tables, pictures and words that it makes."""

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
from tersely.evaluation.report import charts, png
from tersely.evaluation.report import formatting as words
from tersely.evaluation.report.page import page
from tersely.evaluation.report.result import Result, read

from ...support.commands import refused
from ...support.planted_bench import CUT, HOSTILE, RUN, bare, planted, write_planted

FILES = ["arms.csv", "calibration.png", "levels.png", "pareto.png", "report.html", "rows.csv"]
Change = Callable[[dict[str, Any]], object]


def result(**changes: Any) -> Result:
    return Result.model_validate_json(json.dumps(planted(**changes)))


def said(html: str) -> str:
    """The text of a page with single spaces; fails on what no page of ours may hold."""
    found = list[str]()

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            assert tag not in ("script", "img", "iframe", "object", "form")
            names = {name: value or "" for name, value in attrs}
            assert not [name for name in names if name.startswith("on") or name in ("src", "style")]
            assert names.get("href", "#").startswith(("#", "data:,"))
            found.append(" " if tag == "small" else "")

        def handle_data(self, data: str) -> None:
            found.append(data)

    Reader(convert_charrefs=True).feed(html)
    return " ".join("".join(found).split())


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


def test_a_page_says_the_verdict_the_numbers_and_how_to_make_it_again() -> None:
    text = said(page([("r.json", result())], "9.9")).replace(words.SPACE, " ").replace(words.MINUS, "-")
    arm = planted()["arms"][1]
    assert f"✓ Non-inferior and saving balanced takes {100 * arm['saving']:.1f} % fewer tokens than full" in text
    assert "no more than 3 points of accuracy are lost" in text
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
    assert "There is no" not in text and "Nothing is known" not in text
    assert "Seconds are those of a machine that did other work too." in text


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"verdict": "inferior"}, "balanced loses more than 3 points of accuracy against full."),
        ({"verdict": "not saving"}, "balanced saves no tokens against full."),
        (
            {"verdict": "inconclusive", "needed_n": 1480, "margin": 0.005},
            "200 questions cannot tell whether balanced loses more than 0.5 points of accuracy against full; "
            "about 1,480 would.",
        ),
        (
            {"verdict": "inconclusive", "needed_n": None, "margin": 0.005},
            "against full: the difference lies on the line itself.",
        ),
    ],
)
def test_every_verdict_is_a_sentence(changes: dict[str, Any], says: str) -> None:
    assert says in said(page([("r.json", result(**changes))], "1")).replace(words.SPACE, " ")


def test_what_is_open_is_named() -> None:
    given = planted(verdict="inconclusive")
    given["arms"][1]["delta_total_ci"] = [-9.0, 1.0]
    found = Result.model_validate_json(json.dumps(given))
    assert "whether balanced saves tokens against full" in said(page([("r", found)], "1"))
    given["arms"][1]["delta_accuracy_ci"] = [-0.2, 0.1]
    found = Result.model_validate_json(json.dumps(given))
    says = said(page([("r", found)], "1")).replace(words.SPACE, " ")
    assert "whether balanced loses more than 3 points of accuracy or whether it saves tokens against full" in says


def test_what_a_result_lacks_is_left_out_and_said(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main(["report", str(write_planted(tmp_path / "whole.json")), "--out", str(out)]) == 0
    (out / "levels-of-mine.png").write_bytes(b"no picture of ours")
    path = tmp_path / "bare.json"
    path.write_text(json.dumps(bare()))
    assert main(["report", str(path), "--out", str(out)]) == 0
    kept = ["arms.csv", "levels-of-mine.png", "pareto.png", "report.html", "rows.csv"]
    assert sorted(p.name for p in out.iterdir()) == kept  # stale pictures of ours are gone
    text = said((out / "report.html").read_text(encoding="utf-8"))
    for lacks in ("no curve of fixed budgets", "no levels", "no calibration plot", "wall time", "prices", "no rows"):
        assert lacks in text
    assert "Calibration" not in text and "By level" not in text and "At equal accuracy" not in text
    assert (out / "rows.csv").read_text().count("\n") == 1


def test_arms_that_write_nothing_still_make_a_page(tmp_path: Path) -> None:
    silent = bare()
    for arm in silent["arms"]:
        arm["tokens"] = dict.fromkeys(arm["tokens"], 0)
    path = tmp_path / "silent.json"
    path.write_text(json.dumps(silent))
    assert "so there is no plot" in said(page([("s", read(path))], "1"))


def test_text_of_a_result_is_text_and_nothing_else() -> None:
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
    hostile = Result.model_validate_json(json.dumps(named))
    html = page([(HOSTILE, hostile), ("other", result())], HOSTILE)
    assert said(html).count("{{ 7 * 7 }}") > 20
    assert png.png(charts.pareto(hostile, charts.WIDE), HOSTILE, HOSTILE)  # type: ignore[arg-type]  # there are tokens


def test_several_results_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    paths = [write_planted(tmp_path / name, model=model) for name, model in (("r.json", "m1"), ("b/r.json", "m2"))]
    out = tmp_path / "out"
    assert main(["report", *map(str, paths), "--out", str(out)]) == 0
    assert {p.name for p in out.glob("pareto*")} == {"pareto-1.png", "pareto-2.png"}
    html = (out / "report.html").read_text(encoding="utf-8")
    assert "All results at a glance" in said(html)
    for i in (1, 2):
        assert f'href="#r{i}">m{i} on tiny' in html and f'<article id="r{i}"' in html
    with (out / "arms.csv").open(newline="") as file:
        assert {line["result"] for line in csv.DictReader(file)} == set(map(str, paths))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ('{\n "arms": [],\n oops}', "not JSON (key must be a string at line 3 column 2)"),
        ("[1]", "accepted: an object; a result is what `tersely bench --out` writes"),
        ('{"version": 1, "id": "a"}', "a result is what `tersely bench --out` writes"),
        (lambda r: r.pop("verdict"), "field 'verdict' is missing; add it"),
        (lambda r: r.update(jugded="x"), "unknown field 'jugded'; did you mean 'judged'?"),
        (lambda r: r["arms"][1].update(acuracy=1), "unknown field 'arms.1.acuracy'; did you mean 'accuracy'?"),
        (lambda r: r["arms"][2].update(accuracy="0.5"), "arms.2.accuracy is '0.5'; accepted: a valid number"),
        (lambda r: r["arms"][2].update(accuracy=1.5), "less than or equal to 1"),
        (lambda r: r["arms"][2].update(saving=float("nan")), "accepted: a finite number"),
        (lambda r: r.update(judged="balancd"), "judged is 'balancd'; did you mean 'balanced'?"),
        (lambda r: r.update(judged="full"), "accepted: two arms"),
        (lambda r: r["arms"][1].update(saving_ci=None), "saving_ci of the judged arm 'balanced' is null"),
        (lambda r: r["arms"][2].update(name="full"), "two arms are named 'full'"),
        (lambda r: r.update(verdict="good"), "'non-inferior and saving', 'inferior'"),
        (lambda r: r.update(command=[]), "command is []"),
    ],
)
def test_a_file_that_is_no_result_is_one_line(
    given: str | Change, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, whole = tmp_path / "bad.json", planted(rows=[])
    if isinstance(given, str):
        path.write_text(given)
    else:
        given(whole)
        path.write_text(json.dumps(whole))
    error = refused(capsys, "report", path, "--out", tmp_path / "out")
    assert says in error and "bad.json" in error
    assert not (tmp_path / "out").exists()


def test_what_else_can_go_wrong_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_planted(tmp_path / "r.json", rows=[])
    assert "there is no file" in refused(capsys, "report", tmp_path / "none.json", "--out", tmp_path / "out")
    assert "--out" in refused(capsys, "report", path)
    assert "it is a file; accepted: a folder" in refused(capsys, "report", path, "--out", path)
    assert "cannot be made" in refused(capsys, "report", path, "--out", "/proc/nowhere")
    (tmp_path / "taken" / "arms.csv").mkdir(parents=True)
    assert "arms.csv cannot be written: Is a directory" in refused(capsys, "report", path, "--out", tmp_path / "taken")
    binary = tmp_path / "binary.json"
    binary.write_bytes(b"\x89PNG\xff")
    assert "is not UTF-8 text" in refused(capsys, "report", binary, "--out", tmp_path / "out")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert "pip install 'tersely[bench]'" in refused(capsys, "report", path, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_full_disk_leaves_the_earlier_report_whole(tmp_path: Path) -> None:
    path, out = write_planted(tmp_path / "r.json"), tmp_path / "out"
    out.mkdir()
    (out / "report.html").write_text("earlier")
    code = (
        "import resource, sys; from tersely.cli.app import main\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))\n"
        "sys.exit(main(['report', sys.argv[1], '--out', sys.argv[2]]))"
    )
    command = [sys.executable, "-P", "-c", code, str(path), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1] == (
        f"error: {out}/report.html cannot be written: File too large; choose another place with --out"
    )
    assert [p.read_text() for p in out.iterdir()] == ["earlier"]


def test_help_and_reading_cost_no_model_library(tmp_path: Path) -> None:
    code = (
        "import sys; from tersely.cli.app import main\n"
        "assert main(['report', '--help']) == 0 and main(['report', 'none.json', '--out', 'x']) == 2\n"
        "assert not {'torch', 'transformers', 'matplotlib'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert "Usage: tersely report" in done.stdout and list(tmp_path.iterdir()) == []
