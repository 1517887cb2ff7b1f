"""`benchmarks/gpu_check.py`, in small and on a CPU: every check passes, and each arm is timed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "gpu_check.py"
FLAGS = {"max_model_len": 512, "max_num_seqs": 4, "dtype": "float32", "enforce_eager": True}


@pytest.mark.vllm
@pytest.mark.slow
def test_the_checklist_for_gpus_runs_here() -> None:
    arguments = ["tersely-tiny-small", "--vllm", json.dumps(FLAGS), "--concurrency", "4", "--tokens", "32", "--json"]
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *arguments],
        env={**os.environ, "VLLM_CPU_CI_ENV": "1"},  # without a warm-up
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    result = json.loads(done.stdout)
    assert set(result["checks"]) == {"off", "off next to control", "cut", "hint", "hidden states"}
    assert [row["arm"] for row in result["load"]] == ["plain", "inactive", "active"]
    assert all(0 < row["latency_p50_ms"] <= row["latency_p99_ms"] for row in result["load"])
