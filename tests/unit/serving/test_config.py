"""The configuration of servers: what a file may say, what wins, and what a reload keeps."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from tersely.controller.serving.cli import ServeOptions
from tersely.controller.serving.config import ConfigFileError, Rules, make_config, read_config_file
from tersely.controller.serving.rules import LiveConfig
from tersely.controller.trace import Usage
from tersely.errors import OptionError

from ...support.refusals import refused

TEXT = """
control_share = 0.5
[defaults]
effort = "low"
policies = { budget = {}, convergence = { agree = 3 } }
budgets = { high = 9000 }
[ceilings]
thinking_tokens = 4000
max_tokens = 8000
[models.small]
[models.small.defaults]
preset = "fast"
[models.small.ceilings]
thinking_tokens = 1000
[keys.team]
key_env = "TEAM_KEY"
own_policies = false
[keys.team.ceilings]
thinking_tokens = 2000
[prices.small]
input = 1
output = 2.5
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TEAM_KEY", "secret-of-the-team")
    path = tmp_path / "server.toml"
    path.write_text(TEXT)
    return path


def test_a_key_wins_over_a_model_and_that_over_all(file: Path) -> None:
    live = LiveConfig(path=file)
    everybody, small, team = live.rules("other"), live.rules("small"), live.rules("small", "team")
    assert [r.max_thinking for r in (everybody, small, team)] == [4000, 1000, 2000]
    assert [r.max_tokens for r in (everybody, small, team)] == [8000] * 3
    assert [r.own_policies for r in (everybody, small, team)] == [True, True, False]
    assert small.options.preset == "fast" and small.options.policies is None and small.options.effort == "low"
    assert [getattr(policy, "name", policy) for policy in everybody.options.policies or ()] == ["budget", "convergence"]
    assert everybody.caps["high"] == 9000 and everybody.caps["minimal"] == 128
    assert live.billing("small", "team").cost(Usage(2_000_000, answer=1_000_000)) == 4.5


def test_options_of_the_command_win_over_what_a_file_says_for_all(file: Path) -> None:
    changes = ServeOptions(
        effort="high", preset="careful", budget=["low=50"], max_thinking_tokens=500, answer_reserve=90
    ).make_changes()
    live = LiveConfig(changes, file)
    rules = live.rules("other")
    assert (rules.options.effort, rules.options.preset, rules.options.policies) == ("high", "careful", None)
    assert (rules.max_thinking, rules.max_tokens, rules.options.answer_reserve) == (500, 8000, 90)
    assert rules.caps["low"] == 50 and "high" not in rules.caps
    assert live.rules("small").max_thinking == 1000


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"defualts": {}}, ["defualts", "defaults"]),
        ({"models": {"m/1": {"ceilings": {"thinkin_tokens": 90}}}}, ["models.m/1.ceilings", "thinking_tokens"]),
        ({"defaults": {"preset": "blanced"}}, ["defaults.preset", "balanced"]),
        ({"defaults": {"policies": {"budget": {"slak": 1}}}}, ["defaults.policies", "slack"]),
        ({"defaults": {"preset": "off", "policies": []}}, ["defaults", "preset and policies"]),
        ({"defaults": {"budgets": {"none": 5}}}, ["defaults.budgets", "minimal"]),
        ({"ceilings": {"thinking_tokens": 3}}, ["ceilings.thinking_tokens", "32"]),
        ({"ceilings": {"thinking_tokens": "90"}}, ["ceilings.thinking_tokens", "integer"]),
        ({"control_share": 1.5}, ["control_share", "1"]),
        ({"upstreams": [{"url": "http://h", "kid": "chat"}]}, ["upstreams[0].kid", "kind"]),
        ({"upstreams": [{"url": "http://h", "kind": "talk"}]}, ["upstreams[0].kind", "'chat'"]),
        ({"prices": {"m": {"input": -1, "output": 0}}}, ["prices.m.input"]),
        ([], ["server.toml", "got"]),
    ],
    ids=str,
)
def test_a_wrong_key_is_named_with_what_is_accepted(values: Any, words: list[str]) -> None:
    with refused(ConfigFileError) as caught:
        make_config(values, "server.toml")
    assert [word for word in ["server.toml", *words] if word not in str(caught.value)] == [], str(caught.value)


def test_yaml_says_the_same_and_other_files_are_refused(file: Path, tmp_path: Path) -> None:
    yaml = pytest.importorskip("yaml")
    other = tmp_path / "server.yaml"
    other.write_text(yaml.safe_dump(read_config_file(file).model_dump(exclude_unset=True)))
    assert read_config_file(other) == read_config_file(file)
    for name, text in {"a.json": "{}", "b.toml": "a = = 1", "c.yaml": "a: [", "d.toml": "a=" + "[" * 9000}.items():
        (tmp_path / name).write_text(text)
        with refused(ConfigFileError):
            read_config_file(tmp_path / name)
    with refused(ConfigFileError):
        read_config_file(tmp_path / "missing.toml")


def test_keys_come_from_outside_and_are_nowhere_in_the_configuration(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = LiveConfig(path=file)
    assert list(live.keys.values()) == ["team"] and "secret" not in repr(live.config) + repr(live.keys)
    (tmp_path / "key").write_text("from a file\n")
    file.write_text(TEXT + '[keys.other]\nkey_file = "key"\n')
    assert len(LiveConfig(path=file).keys) == 2
    (tmp_path / "key").write_text("secret-of-the-team")
    with refused(ConfigFileError):  # two names of one key
        LiveConfig(path=file)
    (tmp_path / "key").write_text(" ")
    with refused(ConfigFileError, "missing_key"):
        LiveConfig(path=file)
    monkeypatch.delenv("TEAM_KEY")
    with refused(ConfigFileError, "missing_key"):
        LiveConfig(path=file)
    file.write_text("[keys.team]\n")
    with refused(ConfigFileError):
        LiveConfig(path=file)


def test_a_reload_takes_what_is_valid_and_keeps_the_old_one_else(file: Path, caplog: Any) -> None:
    live = LiveConfig(path=file)
    refuse: list[str] = []

    def check(other: LiveConfig) -> None:
        if refuse:
            raise OptionError(refuse[0])

    live.check = check
    for text in ("x = 1", "not toml", TEXT + '[[upstreams]]\nurl = "http://h"', '[defaults]\npreset = "off"'):
        file.write_text(text)
        caplog.clear()
        live.reload()
        assert live.rules("other").max_thinking == 4000
        assert [record.levelno for record in caplog.records] == [logging.ERROR], text
    file.write_text(TEXT.replace("4000", "3000"))
    refuse.append("the engine cannot")
    live.reload()
    assert live.rules("other").max_thinking == 4000
    refuse.clear()
    live.reload()
    assert live.rules("other").max_thinking == 3000
    assert live.rules("small", "team").max_thinking == 2000


def test_a_tuned_file_decides_what_nobody_else_does(tmp_path: Path) -> None:
    (tmp_path / "tuned.json").write_text(json.dumps({"effort": "easy", "policies": {"budget": {}}}))
    file = tmp_path / "server.toml"
    file.write_text('[defaults]\ntuned = "tuned.json"\n[models.other.defaults]\npreset = "fast"')
    live = LiveConfig(path=file)
    assert live.rules("m").tuned and live.rules("m").options.effort == "easy"
    assert not live.rules("other").tuned and live.rules("other").options.preset == "fast"
    with refused(OptionError):
        ServeOptions(effort="low").make_changes(tmp_path / "tuned.json")


def test_efforts_above_the_ceiling_are_lowered() -> None:
    rules = LiveConfig(Rules.model_validate({"ceilings": {"effort": "medium"}})).rules("m")
    efforts = ("none", "low", "normal", "high", "max", "auto")
    assert [rules.fit_effort(effort) for effort in efforts] == ["none", "low", "normal", *["medium"] * 3]


def test_a_conversation_stays_on_its_side_of_the_share() -> None:
    rules = LiveConfig(Rules(control_share=0.3)).rules("m")
    sides = [rules.controls(f"question {number}") for number in range(2000)]
    assert 0.25 < sum(sides) / len(sides) < 0.35
    assert sides == [rules.controls(f"question {number}") for number in range(2000)]
    assert not LiveConfig(Rules(control_share=0.0)).rules("m").controls("x")
    assert LiveConfig(Rules(control_share=1.0)).rules("m").controls("x")
