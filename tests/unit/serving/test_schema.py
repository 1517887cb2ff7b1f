"""The server against its own schema: schemathesis makes requests of it, good and bad, and judges the answers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tersely.controller.engines.transformers.engine import load_engine
from tersely.controller.serving.settings import ServerLimits, ServerSettings

from ...support.serving import MODEL, served

pytest.importorskip("schemathesis")

KEY = "a-key-of-the-test"


def test_every_answer_is_one_that_the_schema_names(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    with served(load_engine(MODEL), ServerSettings(MODEL, api_key=KEY, limits=ServerLimits(tokens=48))) as server:
        command = [
            *(sys.executable, "-m", "schemathesis.cli", "run", f"{server.url}/openapi.json"),
            *("--header", f"Authorization: Bearer {KEY}"),
            # Left out: that all of the right form is taken. An empty prompt, say, is refused for what it means.
            *("--checks", "all", "--exclude-checks", "positive_data_acceptance"),
            *("--max-examples", "12", "--seed", "1", "--no-color", "--request-timeout", "60"),
            *("--report-json-path", str(report)),
        ]
        ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=500)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    told = json.loads(report.read_text())
    assert told["test_cases"]["generated"] > 1000 and told["test_cases"]["with_failures"] == 0
    for path in ("/v1/chat/completions", "/v1/responses"):  # that requests got past the door
        assert told["valid_rates"][f"POST {path}"]["coverage"]["accepted"] > 100
