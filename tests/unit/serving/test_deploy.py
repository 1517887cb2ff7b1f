"""The files of deploy/ name only metrics, commands, options and keys that exist; container and unit are not run."""

from __future__ import annotations

import json
import re
import shlex
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tersely.controller.engines.openai.client import OpenAIClient
from tersely.controller.serving import gateway
from tersely.controller.serving.config import Upstream
from tersely.controller.serving.metrics import Metrics
from tersely.controller.serving.rules import LiveConfig, check_names
from tersely.controller.serving.settings import Billing, ServerLimits
from tersely.controller.trace import Decision, GenerationResult, Usage
from tersely.errors import OptionError

from ...support.refusals import refused
from ..tersely.test_docs import help_of

DEPLOY = Path(__file__).parents[3] / "deploy"


def test_the_board_shows_metrics_that_exist() -> None:
    metrics = Metrics()
    done = GenerationResult("", "", "", "stop", "easy", Usage(9, 9, 9), (Decision("budget", "close", "", 0),))
    metrics.add_result(done, 9, Billing("m", "k", control="shadow", input=1, output=1))
    metrics.requests.labels("200").inc()
    families = text_string_to_metric_families(metrics.render().decode())
    known = {sample.name: set(sample.labels) for family in families for sample in family.samples}
    board = json.loads((DEPLOY / "grafana.json").read_text())
    queries = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    named = {name for query in queries for name in re.findall(r"tersely_\w+", query)}
    assert named - set(known) == set()
    own = {name for name in known if not name.endswith(("_created", "_sum", "_count"))}
    assert {name.removesuffix("_bucket") for name in own - named} == set(), "a metric is on no panel"
    for query in queries:
        labels = {label.strip() for group in re.findall(r"by \((.*?)\)", query) for label in group.split(",")}
        assert labels <= known[re.findall(r"tersely_\w+", query)[0]], query
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])


@pytest.mark.parametrize("name", ["Dockerfile", "compose.yaml", "kubernetes.yaml", "tersely.service"])
def test_commands_have_options_that_exist(name: str) -> None:
    text = (DEPLOY / name).read_text()
    commands = [json.loads(found) for found in re.findall(r"^(?:ENTRYPOINT|CMD) (\[.*\])", text, re.M)]
    gateway = text.partition("gateway:")[2] if name == "compose.yaml" else ""
    commands += [json.loads(found) for found in re.findall(r"command: (\[.*\])", gateway)]
    commands += [json.loads(found) for found in re.findall(r"args: (\[.*\])", text)]
    commands += [shlex.split(found)[1:] for found in re.findall(r"^ExecStart=(.*)", text, re.M)]
    options = [part for command in commands for part in command if part.startswith("--")]
    known = help_of("serve")
    assert "--config" in options
    assert [option for option in options if not re.search(rf"{option}(?![\w-])", known)] == []


def test_the_example_has_every_key_and_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    for number, name in enumerate(("CHAT_FRONTEND_KEY", "RESEARCH_KEY", "UPSTREAM_KEY")):
        monkeypatch.setenv(name, f"key {number}")
    live = LiveConfig(path=DEPLOY / "server.toml")
    assert set(live.keys.values()) == {"chat-frontend", "research"}
    assert live.rules("reasoner", "chat-frontend").max_thinking == 4096
    assert live.rules("reasoner", "research").options.preset == "careful"
    assert live.rules("helper").options.preset == "off"


def test_the_manifest_mounts_its_configuration() -> None:
    config, deployment, service = yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text())
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    (file,) = config["data"]
    assert f"{container['volumeMounts'][0]['mountPath']}/{file}" in container["args"]
    assert service["spec"]["selector"].items() <= deployment["spec"]["template"]["metadata"]["labels"].items()


def test_each_configuration_passes_the_checks_of_the_start_as_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = next(yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text()))
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    texts = [(DEPLOY / "server.toml").read_text(), manifest["data"]["server.toml"]]
    texts.append(compose["configs"]["server"]["content"])
    connected = []

    async def find_none(upstream: Upstream, client: OpenAIClient) -> list[Any]:
        connected.append(client.url)
        return []

    monkeypatch.setattr(gateway, "_find_models", find_none)
    for number, text in enumerate(texts):
        for name in re.findall(r'key_env = "(\w+)"', text):
            monkeypatch.setenv(name, f"key of {name}")
        file = tmp_path / f"{number}.toml"
        file.write_text(text)
        live = LiveConfig(path=file)
        gateway.open_upstreams(live.config.upstreams, tmp_path, gateway.Thinking(), ServerLimits(), Metrics())
        if all(upstream.models for upstream in live.config.upstreams):
            check_names(live.config, [name for upstream in live.config.upstreams for name in upstream.names or ()])
    assert connected[2:] == ["http://model:8000/v1"] * 2
    assert compose["services"]["model"]["command"][1] in texts[2], "the gateway asks for another model"
    with refused(OptionError, "insecure_key"):
        upstreams = [Upstream(url="http://model:8000/v1")]
        gateway.open_upstreams(upstreams, tmp_path, gateway.Thinking(), ServerLimits(), Metrics(), "secret")


def test_images_have_the_tag_of_this_version() -> None:
    tags = [
        re.findall(r"tersely:([\w.]+)", (DEPLOY / name).read_text()) for name in ("compose.yaml", "kubernetes.yaml")
    ]
    assert tags == [[version("tersely")]] * 2
