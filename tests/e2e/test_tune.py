"""`tersely tune`: the search finds planted candidates, the validation chooses, and the config file is usable."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tersely
from tersely.cli.app import main
from tersely.controller.budgets import Budget
from tersely.controller.options import ConfigError, TunedConfig, load_config, read_config
from tersely.controller.policies.exits import Convergence
from tersely.errors import OptionError
from tersely.evaluation.bench.records import OVERHEADS, ArmRecords, BenchRow
from tersely.evaluation.tune import FINALISTS, Candidate, choose, default_space, read_space, search, validate

from ..support.commands import refused


def row(number: str, right: bool, total: float) -> BenchRow:
    counts = dict.fromkeys(("prompt", "thinking", "answer_tokens", "forced"), 0)
    overheads = dict.fromkeys((*OVERHEADS, "overhead"), 0)
    told = {"task": "planted", "level": None, "tier": "normal", "arm": "x", "rollout": 0, "answer": "", "outcome": ""}
    return BenchRow(id=number, right=right, total=total, capped=False, **counts, **overheads, **told)  # type: ignore[arg-type]


class Planted:
    """Candidates with a known accuracy and cost; `None` is the uncontrolled model."""

    def __init__(self, arms: dict[str | None, tuple[float, float]]) -> None:
        self.arms = arms
        self.asked: dict[tuple[str, str | None], int] = {}

    def __call__(self, part: str, candidate: Candidate | None, start: int, stop: int) -> ArmRecords:
        name = candidate.name if candidate else None
        self.asked[part, name] = self.asked.get((part, name), 0) + stop - start
        accuracy, cost = self.arms[name]
        # The same questions are hard for all candidates, as in reality.
        hard = np.random.default_rng([start, len(part)]).random(stop - start)
        rows = [row(f"{part} {start + i}", right=bool(h < accuracy), total=cost) for i, h in enumerate(hard)]
        return ArmRecords(str(name), rows, 1)


def cost(records: ArmRecords) -> Any:
    return records.means("total")


def candidates(*names: str) -> list[Candidate]:
    return [Candidate(name, TunedConfig()) for name in names]


ARMS = {None: (0.8, 100.0), "good": (0.8, 60.0), "costly": (0.8, 90.0), "harmful": (0.5, 20.0), "worse": (0.8, 120.0)}


def test_the_cheapest_without_loss_is_found_and_validated() -> None:
    ask = Planted({**ARMS, **{f"costly {i}": (0.8, 95.0) for i in range(8)}})
    names = [name for name in ask.arms if name is not None]
    finalists = search(candidates(*names), ask, cost, 256, 0.01)
    assert finalists[0].name == "good"
    assert len(finalists) == FINALISTS
    findings = validate(finalists, ask, cost, 2000, 0.01, 0)
    best = choose(findings)
    assert best is not None and best.name == "good"
    assert best.saving[0] == pytest.approx(0.4)
    assert best.level == pytest.approx(1 - 0.05 / FINALISTS)
    assert ask.asked["search", "good"] == 256
    assert ask.asked["search", "worse"] < 256, "bad candidates are dropped early"
    assert ask.asked["prove", "good"] == ask.asked["prove", None] == 2000


def test_nothing_is_chosen_if_all_lose_or_cost_more() -> None:
    ask = Planted(ARMS)
    findings = validate(candidates("harmful", "worse"), ask, cost, 500, 0.01, 0)
    assert [finding.verdict for finding in findings] == ["inferior", "not saving"]
    assert choose(findings) is None


def test_too_few_questions_are_refused() -> None:
    with pytest.raises(OptionError) as e:
        search(candidates("good"), Planted(ARMS), cost, 8, 0.01)
    assert e.value.code == "too_few_questions"


def test_the_default_space_has_probe_policies_only_with_probes() -> None:
    plain, with_probes = ({c.name for c in default_space(has)} for has in (False, True))
    assert "normal + hint + convergence(agree=2)" in plain
    assert not any("readiness" in name or "auto" in name for name in plain)
    assert {"normal + readiness", "auto", "auto + diffadapt"} <= with_probes


def test_a_space_is_read_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "space.json"
    cool = {"normal": {"temperature": 0.5}}
    path.write_text(json.dumps({"effort": ["easy", "normal"], "policies": [{"hint": {}}], "strategy": ["tiers", cool]}))
    space = read_space(path)
    assert [c.name for c in space] == [
        "easy + hint",
        'easy + {"normal": {"temperature": 0.5}} + hint',
        "normal + hint",
        'normal + {"normal": {"temperature": 0.5}} + hint',
    ]
    strategy = space[3].config.options()["strategy"]
    assert strategy["normal"] == Budget("normal", temperature=0.5)


@pytest.mark.parametrize(
    ("text", "code", "suggestion"),
    [
        ("[", "invalid_space", ""),
        ('{"effort": "easy"}', "invalid_space", ""),
        ('{"effort": []}', "invalid_space", ""),
        ('{"efort": ["easy"]}', "invalid_space", "'effort'"),
        ('{"effort": ["eazy"]}', "unknown_name", "'easy'"),
        ('{"policies": [{"hnt": {}}]}', "unknown_name", "'hint'"),
        ('{"policies": [{"hint": {"alfa": 1}}]}', "unknown_name", "'alpha'"),
        ('{"strategy": [{"normal": {"temprature": 1}}]}', "unknown_name", "'temperature'"),
        ('{"strategy": [{"norm": {}}]}', "unknown_name", "'normal'"),
    ],
)
def test_invalid_spaces_are_refused(text: str, code: str, suggestion: str, tmp_path: Path) -> None:
    path = tmp_path / "space.json"
    path.write_text(text)
    with pytest.raises(OptionError) as e:
        read_space(path)
    assert e.value.code == code and suggestion in str(e.value)


def test_a_config_file_round_trips(tmp_path: Path) -> None:
    config = TunedConfig("easy", {"convergence": {"agree": 3}}, {"easy": {"thinking": 99}}, {"n": 3})
    config.save(tmp_path / "c.json")
    again = read_config(tmp_path / "c.json")
    assert again == config
    assert again.found == {"n": 3}
    options = load_config(tmp_path / "c.json")
    assert options["effort"] == "easy"
    assert options["policies"] == (Convergence(agree=3),)
    assert options["strategy"]["easy"].thinking == 99
    done = tersely.generate(
        "tersely-tiny-small", prompts="What is 7 * 6?", temperature=0, max_new_tokens=400, **options
    )
    assert done.tier == "easy"


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", ConfigError),
        ('{"format": 1, "efort": "easy"}', OptionError),
        ('{"format": 1, "policies": {"convergence": {"agre": 2}}}', OptionError),
        ('{"format": 1, "policies": ["convergence"]}', ConfigError),
        ('{"format": 1, "strategy": "fast"}', OptionError),
    ],
)
def test_invalid_config_files_are_refused(text: str, error: type[Exception], tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    path.write_text(text)
    with pytest.raises(error):
        load_config(path)


def test_tune_on_the_embedded_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The whole command: a small search, a small validation, and the file used by run."""
    space, out = tmp_path / "space.json", tmp_path / "tuned.json"
    space.write_text('{"policies": [{"convergence": {"agree": 2}}, {"hint": {}}]}')
    few = ("--limit", "32", "--validation-questions", "16", "--margin", "0.6", "--max-new-tokens", "160")
    assert main(["tune", "--out", str(out), "--space", str(space), *few]) == 0
    printed = capsys.readouterr().out
    config = read_config(out)
    best = next(line for line in printed.splitlines() if line.startswith("* "))
    assert ("convergence" in config.policies) == ("convergence" in best)
    assert {finding["n"] for finding in config.found["findings"]} == {16}
    assert not out.with_name("tuned.json.journal").exists()
    assert main(["run", "What is 7 * 6?", "--config", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["answer"]
    assert "leave out --effort" in refused(capsys, "run", "2 + 2?", "--config", str(out), "--effort", "easy")


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["--objective", "dollars"], "'dollars'"),
        (["--objective", "usd"], "--price"),
        (["--margin", "2"], "--margin is 2.0"),
        (["--engine", "vlm"], "'vllm'"),
        (["--tasks", "nowhere.jsonl"], "'nowhere.jsonl'"),
        (["--tasks", "tiny,tiny"], "'tiny,tiny'"),
    ],
)
def test_bad_options_are_refused(
    arguments: list[str], shown: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert shown in refused(capsys, "tune", "--out", str(tmp_path / "t.json"), *arguments)
    assert not (tmp_path / "t.json").exists()
