"""Inspect and lighteval against a real server, each from an environment of its own.

`TERSELY_INSPECT` and `TERSELY_LIGHTEVAL` are their commands. lighteval loads things from the Hub when it starts.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import tersely

from ..support.serving import Served, served

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples" / "integrations"
MODEL = "tersely-tiny-large"
needs_inspect = pytest.mark.skipif("TERSELY_INSPECT" not in os.environ, reason="no command in TERSELY_INSPECT")
needs_lighteval = pytest.mark.skipif("TERSELY_LIGHTEVAL" not in os.environ, reason="no command in TERSELY_LIGHTEVAL")


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with served(tersely.load_engine(MODEL), name=MODEL) as running:
        yield running


def run(program: str, folder: Path, *arguments: str, **environment: str) -> None:
    """Run a program in a folder."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    command = [*shlex.split(os.environ[program]), *arguments]
    done = subprocess.run(
        command, cwd=folder, env={**inherited, **environment}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


def evaluate(server: Served, folder: Path, *options: str) -> tuple[float, dict[str, Any], int]:
    """The accuracy of Inspect's run, the settings of its requests, and all thinking tokens."""
    common = ("--model", f"openai-api/tersely/{MODEL}", "--display", "none", "--log-format", "json")
    urls = {"TERSELY_BASE_URL": f"{server.url}/v1", "TERSELY_API_KEY": "none", "INSPECT_LOG_DIR": str(folder)}
    run("TERSELY_INSPECT", ROOT, "eval", "examples/integrations/inspect_eval.py", *common, *options, **urls)
    (path,) = folder.glob("*.json")
    log = json.loads(path.read_text("utf-8"))
    accuracy = log["results"]["scores"][0]["metrics"]["accuracy"]["value"]
    outputs = [sample["output"] for sample in log["samples"]]
    kinds = [part["type"] for output in outputs for part in output["choices"][0]["message"]["content"]]
    assert log["status"] == "success" and kinds == ["reasoning", "text"] * 5
    return accuracy, log["plan"]["config"], sum(output["usage"]["reasoning_tokens"] for output in outputs)


@needs_inspect
def test_inspect_saves_under_control(server: Served, tmp_path: Path) -> None:
    free = evaluate(server, tmp_path / "off", "-T", "preset=off")
    saving = evaluate(server, tmp_path / "balanced")
    assert free[0] == saving[0] == 1.0
    assert saving[2] < 0.8 * free[2]
    capped = evaluate(server, tmp_path / "low", "--reasoning-effort", "minimal")
    assert capped[1]["reasoning_effort"] == "minimal" and capped[2] < saving[2]


@needs_inspect
def test_inspect_on_the_responses_endpoint(server: Served, tmp_path: Path) -> None:
    assert evaluate(server, tmp_path, "-M", "responses_api=true", "--reasoning-effort", "medium")[0] == 1.0


@needs_lighteval
def test_lighteval_through_litellm(server: Served, tmp_path: Path) -> None:
    model = (EXAMPLES / "lighteval_model.yaml").read_text("utf-8")
    (tmp_path / "model.yaml").write_text(model.replace("http://127.0.0.1:8000", server.url))
    task = ("tersely_arithmetic", "--custom-tasks", str(EXAMPLES / "lighteval_task.py"), "--output-dir", str(tmp_path))
    run(
        "TERSELY_LIGHTEVAL", tmp_path, "endpoint", "litellm", str(tmp_path / "model.yaml"), *task, HF_HOME=str(tmp_path)
    )
    (path,) = tmp_path.rglob("results_*.json")
    assert json.loads(path.read_text("utf-8"))["results"]["all"]["extractive_match"] == 1.0
