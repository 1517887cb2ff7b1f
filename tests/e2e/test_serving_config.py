"""Servers under a configuration: keys, ceilings, shares, the off switch, prices, and a reload by signal."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tersely.controller.engines.transformers.engine import TransformersEngine, load_engine
from tersely.controller.serving.cli import serve
from tersely.controller.serving.config import ConfigFileError
from tersely.controller.serving.replies import ReplyRecorder
from tersely.controller.serving.rules import LiveConfig, ServerSettings
from tersely.errors import CapabilityError, OptionError, TerselyError
from tersely.evaluation.replay.formats import Fields
from tersely.evaluation.replay.logs import load_set

from ..support.refusals import refused
from ..support.serving import MODEL, PATIENCE, QUESTION, Served, body, configured, error_of, served

GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 400}
FILE = f"""
[ceilings]
max_tokens = 600
[keys.team]
key_env = "TEAM_KEY"
own_policies = false
[keys.team.defaults]
thinking_tokens = 60
[keys.team.ceilings]
thinking_tokens = 40
effort = "medium"
[keys.lab]
key_env = "LAB_KEY"
[prices."{MODEL}"]
input = 1.0
output = 10.0
"""


@pytest.fixture(scope="module")
def engine() -> TransformersEngine:
    return load_engine(MODEL)


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TEAM_KEY", "of-the-team")
    monkeypatch.setenv("LAB_KEY", "of-the-lab")
    path = tmp_path / "server.toml"
    path.write_text(FILE)
    return path


@pytest.fixture
def server(file: Path) -> Iterator[Served]:
    settings = ServerSettings(LiveConfig(path=file), log="json")
    with served(load_engine(MODEL), settings, api_key="of-the-lab") as running:
        yield running


def ask(server: Served, key: str, **fields: Any) -> httpx.Response:
    return server.http.post(
        "/v1/chat/completions", json=body(**{**GREEDY, **fields}), headers={"authorization": f"Bearer {key}"}
    )


def test_each_key_has_its_own_rules(server: Served, capfd: pytest.CaptureFixture[str]) -> None:
    for key in ("of-nobody", "wrong"):
        assert error_of(ask(server, key), 401)["code"] == "invalid_api_key"
    for fields in ({}, {"reasoning_effort": "high"}, {"thinking_token_budget": 300}):
        choice = ask(server, "of-the-team", **fields).json()["choices"][0]
        assert 0 < choice["tersely"]["usage"]["thinking"] <= 40 and choice["message"]["content"]
    assert choice["tersely"]["budget"] == 40
    lowered = ask(server, "of-the-team", reasoning_effort="high").json()["choices"][0]["tersely"]
    assert lowered["effort"] == "medium" and lowered["decisions"][0]["policy"] == "server"
    own: dict[str, Any]
    for own in ({"preset": "off"}, {"policies": []}, {"shadow": True}, {"shadow": False}):
        assert error_of(ask(server, "of-the-team", tersely=own), 403)["code"] == "not_allowed"
    free = ask(server, "of-the-lab", tersely={"preset": "off"}).json()["choices"][0]["tersely"]
    assert free["usage"]["thinking"] > 40
    assert error_of(ask(server, "of-the-lab", max_tokens=601), 400)["param"] == "max_tokens"
    listed = [
        server.http.get("/v1/models", headers={"authorization": f"Bearer {key}"}).json()["data"][0]["tersely"][
            "efforts"
        ]
        for key in ("of-the-team", "of-the-lab")
    ]
    assert listed[0]["high"] == 40 < listed[1]["high"]
    metrics = server.metrics()
    costs = {name: metrics[f'tersely_cost_total{{key="{name}",model="{MODEL}"}}'] for name in ("team", "lab")}
    assert 0 < costs["team"] < 0.01 and costs["lab"] > 0
    text = capfd.readouterr().err
    keys = [line.get("key") for line in map(json.loads, filter(lambda line: line[:1] == "{", text.splitlines()))]
    assert {"team", "lab", None} <= set(keys) and "of-the" not in text


def test_the_off_switch_and_the_share_under_control(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    rules: dict[str, Any] = {"ceilings": {"thinking_tokens": 40}}
    path = tmp_path / "replies.jsonl"
    for changes, budget, control in (
        ({"enabled": False}, None, "off"),
        ({"control_share": 0.0}, 40, "off"),
        ({}, 40, "full"),
    ):
        settings = ServerSettings(configured(**rules, **changes), recorder=ReplyRecorder(path), log="json")
        with served(load_engine(MODEL), settings) as server:
            reply = server.chat(**GREEDY)
            assert reply.headers["x-tersely-control"] == control
            meta = reply.json()["choices"][0]["tersely"]
            assert (meta["decisions"][0]["policy"] == "server") == bool(changes) and meta["budget"] == budget
            # Outside of the share, what no request passes still holds; with the switch off, nothing does.
            assert (meta["usage"]["thinking"] > 40) == ("enabled" in changes)
    # Only replies without control are recorded, and the one that the ceiling cut says so.
    assert path.stat().st_mode & 0o777 == 0o600
    recorded = load_set(path, "replies", Fields(), None)
    assert [row.question for row in recorded.rows] == [QUESTION] and recorded.left_out == {"truncated": 1}
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines() if '"path"' in line]
    assert [(line["model"], line["effort"], line["preset"], line["control"]) for line in lines] == [
        (MODEL, "normal", "off", "off"),
        (MODEL, "normal", "off", "off"),
        (MODEL, "normal", "balanced", "on"),
    ]
    with refused(OptionError):
        ReplyRecorder(tmp_path)


def test_what_the_server_cannot_do_is_refused_at_the_start(file: Path, tmp_path: Path) -> None:
    def start(text: str, **options: Any) -> None:
        file.write_text(text)
        serve(config=file, port=0, **options)

    refusals: list[tuple[type[TerselyError], str, dict[str, Any]]] = [
        (ConfigFileError, "unknown = 1", {}),
        (OptionError, '[models.other.defaults]\npreset = "off"', {}),
        (OptionError, "[prices.other]\ninput = 1\noutput = 1", {}),
        (CapabilityError, f'[models."{MODEL}".defaults]\npolicies = ["speculative"]', {}),
        (OptionError, '[[upstreams]]\nurl = "http://127.0.0.1:9"', {"upstream": "http://127.0.0.1:9"}),
        (OptionError, "shadow_share = 0.1\n[ceilings]\nthinking_tokens = 99", {}),
    ]
    for kind, text, options in refusals:
        with pytest.raises(kind):
            start(text, **options)
    with refused(ConfigFileError):
        serve(config=tmp_path / "tuned.json", port=0)


def test_the_command_serves_and_reloads_until_a_signal_ends_it(file: Path) -> None:
    command = [sys.executable, "-m", "tersely.cli", "serve", "--config", str(file), "--port", "0"]
    process = subprocess.Popen([*command, "--budget", "low=33"], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        ready = next(line for line in process.stderr if " is served at " in line)
        url = ready.split(" is served at ")[1].split()[0]

        def thinking(**fields: Any) -> int:
            headers = {"authorization": "Bearer of-the-team"}
            sent = body(**GREEDY, **fields)
            reply = httpx.post(f"{url}/chat/completions", json=sent, headers=headers, timeout=PATIENCE)
            return int(reply.json()["choices"][0]["tersely"]["budget"])

        assert httpx.get(f"{url}/models").status_code == 401
        assert (thinking(), thinking(reasoning_effort="low")) == (40, 33)
        for text, expected in ((FILE.replace("= 40", "= 50"), 50), ("nonsense", 50)):
            file.write_text(text)
            process.send_signal(signal.SIGHUP)
            line = next(line for line in process.stderr if "configuration" in line)
            assert ("old one stays" in line) == (text == "nonsense")
            assert thinking() == expected
    finally:
        process.terminate()
        process.communicate()
    assert process.returncode == 0
