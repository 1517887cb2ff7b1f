"""The server keeps to its own OpenAPI schema, as schemathesis checks with good and bad requests."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tersely.controller.engines.transformers.engine import load_engine
from tersely.controller.serving.rules import ServerSettings

from ..support.serving import MODEL, configured, served

pytestmark = pytest.mark.skipif(find_spec("schemathesis") is None, reason="schemathesis is not installed")

KEY = "a-key-of-the-test"


@pytest.mark.parametrize("left_out", ["/v1/responses", pytest.param("/nothing", marks=pytest.mark.attack)])
def test_responses_conform_to_the_schema(tmp_path: Path, left_out: str) -> None:
    report = tmp_path / "report.json"
    with served(load_engine(MODEL), ServerSettings(configured(KEY, ceilings={"max_tokens": 4})), api_key=KEY) as server:
        command = [
            *(sys.executable, "-m", "schemathesis.cli", "run", f"{server.url}/openapi.json"),
            *("--header", f"Authorization: Bearer {KEY}"),
            # An empty prompt, for example, has the right form and is refused nevertheless.
            *("--checks", "all", "--exclude-checks", "positive_data_acceptance"),
            *("--exclude-path", left_out, "--max-examples", "1", "--seed", "1"),
            *("--no-color", "--request-timeout", "60"),
            *("--report-json-path", str(report)),
        ]
        ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=500)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    results = json.loads(report.read_text())
    assert results["test_cases"]["generated"] > 500 and results["test_cases"]["with_failures"] == 0
    for path in {"/v1/chat/completions", "/v1/responses"} - {left_out}:  # enough requests were valid
        assert results["valid_rates"][f"POST {path}"]["coverage"]["accepted"] > 100
