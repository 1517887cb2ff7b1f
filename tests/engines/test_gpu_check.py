"""`benchmarks/gpu_check.py`, in small and on a CPU: every check passes, and each arm is timed."""

from __future__ import annotations

import importlib.util
import io
import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stdout, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from vllm import LLM

    from tersely.controller.vllm.engine import VllmEngine

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "gpu_check.py"
FLAGS = {"max_model_len": 512, "max_num_seqs": 4, "dtype": "float32", "enforce_eager": True}
ARGUMENTS = ["tersely-tiny-small", "--vllm", json.dumps(FLAGS), "--concurrency", "4", "--tokens", "16", "--json"]

pytestmark = pytest.mark.vllm


def assert_passed(printed: str) -> None:
    result = json.loads(printed)
    assert {name: good for name, (good, _) in result["checks"].items()} == dict.fromkeys(
        ("off", "off next to control", "cut", "hint", "hidden states"), True
    )
    assert [row["arm"] for row in result["load"]] == ["plain", "inactive", "active"]
    assert all(0 < row["latency_p50_ms"] <= row["latency_p99_ms"] for row in result["load"])


def test_the_checklist_passes_on_engines_of_this_process(
    start_vllm: Callable[..., LLM], tersely_llm: Any, vllm_engine: VllmEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec: Any = importlib.util.spec_from_file_location("gpu_check", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    plain = start_vllm("tersely-tiny-small")

    def run() -> str:
        with redirect_stdout(io.StringIO()) as out, suppress(SystemExit):  # its status
            script.main()
        return out.getvalue().splitlines()[-1]

    def run_part(name: str, arguments: list[str]) -> Any:
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *arguments, "--part", name])
        return json.loads(run())

    monkeypatch.setattr(script, "start", lambda options, ours: tersely_llm if ours else plain)
    monkeypatch.setattr(script, "run_part", run_part)
    monkeypatch.setattr("tersely.controller.vllm.engine.load_vllm", lambda *_, **__: vllm_engine)
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *ARGUMENTS])
    assert_passed(run())


@pytest.mark.attack
def test_the_checklist_starts_its_own_engines() -> None:
    done = subprocess.run([sys.executable, str(SCRIPT), *ARGUMENTS], stdout=subprocess.PIPE, text=True, check=True)
    assert_passed(done.stdout)
