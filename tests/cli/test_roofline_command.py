"""`tersely roofline`: its output, and one line with exit code 2 for bad input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tersely.cli.app import main
from tersely.evaluation.economics.flops import load_shape
from tersely.models import get_model_path

from ..support.commands import refused


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["roofline", *arguments]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out


def test_both_phases_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    text = run(capsys, "--device", "A100", "--batch-size", "4", "--usd-per-hour", "2")
    assert f"{load_shape('tersely-tiny-small').parameters:,} parameters in float32" in text
    assert "19.5 TFLOP/s, 2039 GB/s" in text
    assert "USD per million tokens" in text
    rows = {line.split()[0]: line.split() for line in text.splitlines() if line.startswith(("prefill", "decode"))}
    assert rows["prefill"][5] == "compute"
    assert rows["decode"][5] == "memory"
    assert all(len(line) <= 120 for line in text.splitlines())


def test_json_output(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text(
        "\n".join(
            json.dumps({"prompt": p, "output": o, "seconds": 0.01 + 1e-5 * p + 1e-3 * (o - 1)})
            for p in (10, 500)
            for o in (1, 200)
        )
    )
    options = (
        "--peak-tflops",
        "2",
        "--bandwidth-gbs",
        "50",
        "--dtype",
        "int8",
        "--usd-per-hour",
        "3.6",
        "--log",
        str(log),
    )
    result = json.loads(run(capsys, "tersely-tiny-large", *options, "--json"))
    assert result["parameters"] == load_shape("tersely-tiny-large").parameters
    assert result["device"]["bandwidth"] == 50e9
    assert result["decode"]["bound"] == "memory"
    assert result["usd_per_million"]["decode"] == pytest.approx(1000 / result["decode"]["tokens_per_second"])
    assert result["runtime"]["per_output"] == pytest.approx(1e-3)
    text = run(capsys, "tersely-tiny-large", *options)
    assert "1 ms per output token" in text
    assert f"at {result['decode']['seconds'] / 1e-3:.0%} of this bound" in text


def test_this_machine_is_measured_by_default(capsys: pytest.CaptureFixture[str]) -> None:
    device = json.loads(run(capsys, "--context", "1", "--json"))["device"]
    assert device["source"].startswith("measured")
    assert device["memory"] is None


def test_only_a_config_is_needed(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    config = json.loads((get_model_path("tersely-tiny-small") / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 2, "layer_types": None}))
    assert "parameters in float32" in run(capsys, str(tmp_path), "--device", "H100")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--device", "H1000"], "unknown device 'H1000'; did you mean 'H100'?"),
        (["/nowhere/at/all", "--device", "H1000"], "unknown device"),
        (["--dtype", "bfloat"], "did you mean 'bfloat16'?"),
        (["--usd-per-hour", "-1"], "accepted: a price of 0 or more"),
        (["--usd-per-hour", "nan"], "accepted: a price of 0 or more"),
        (["--peak-tflops", "100"], "--bandwidth-gbs is missing"),
        (["--peak-tflops", "-1", "--bandwidth-gbs", "1"], "--peak-tflops is -1"),
        (["--batch-size", "0"], "--batch-size"),
        (["--context", "5000", "--device", "H100"], "at most 4096"),
        (["--contxt", "5"], "--context"),
        (["/nowhere/at/all"], "'/nowhere/at/all'"),
        (["{tmp}"], "config.json"),
        (["--log", "{tmp}/none.jsonl"], "none.jsonl"),
        (["--log", "{tmp}/few.jsonl"], "needed: 3 or more"),
        (["--log", "{tmp}/bad.jsonl"], "line 2: seconds is -1; accepted: greater than or equal to 0"),
    ],
)
def test_bad_options(arguments: list[str], named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = '{"prompt": 5, "output": 3, "seconds": 1}\n'
    (tmp_path / "few.jsonl").write_text(good * 2)
    (tmp_path / "bad.jsonl").write_text(good + '{"prompt": 5, "output": 3, "seconds": -1}\n')
    assert named in refused(capsys, "roofline", *(a.format(tmp=tmp_path) for a in arguments))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"dtype": None}, "--dtype"),
        ({"num_experts": 8, "model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"]}, "mixture of experts"),
        ({"architectures": ["BertForMaskedLM"]}, "not a causal language model"),
        ({"model_type": "nonesuch"}, "the configuration of"),
    ],
)
def test_unsuitable_config(
    changes: dict[str, Any], named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = json.loads((get_model_path("tersely-tiny-small") / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "config.json").write_text(json.dumps({**config, **changes}))
    assert named in refused(capsys, "roofline", str(tmp_path), "--device", "H100")
