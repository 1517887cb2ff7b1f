"""Take two small steps of every training method on a model.

This shows that prompts, markers, sampling, rewards, loss, gradients and saving work with a model, not that anything is
learned. Methods train an adapter, except that learned hints train embeddings and MAH-DPO two heads in turn. Prints for
each method the losses and gradients of its steps, the change of the adapter, minutes, and GiB of memory (Linux, on a
CPU) next to the estimate of a dry run. A model that was not trained to think needs --markers that are single tokens of
it, and the task `sums` if it answers too few questions right.

    python benchmarks/lora_step.py --model MODEL --markers Thought,Answer --task sums --thinking 48 --tokens 160
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml
from measuring import make_parser, print_figures
from safetensors.torch import load_file

from tersely.training.run import train

_STATUS, _PEAK = Path("/proc/self/status"), Path("/proc/self/clear_refs")
LORA = {"rank": 8, "alpha": 16}
SUMS = "sums"
OWN: Mapping[str, Mapping[str, Any]] = {
    "adaptthink": {"adaptthink": {"reference_samples": 2, "no_think_tokens": 96, "brevity": 0.2}},
    "apo": {"apo": {"forced": 1}},
    "ser": {},
    "vsrm": {"vsrm": {"answers": 2, "answer_tokens": 16, "floor": 0, "spacing": 40}},
    "sft": {"sft": {"samples": 8}},
    "adar1": {"adar1": {"samples": 8, "short": {"steps": 1, "micro_batch": 2, "learning_rate": 1e-4, "lora": LORA}}},
    "hint": {
        "hint": {"samples": 8},
        "optimizer": {"lora": None, "dtype": "float32"},
        "rollouts": {"policies": {"hint": {"earliest": 0}}},
    },
    "mahdpo": {
        "mahdpo": {"samples": 8, "gap": 0.02, "frozen": True, "objectives": ["accuracy", "brevity"]},
        "optimizer": {"lora": None, "dtype": "float32", "steps": 4},
    },
}


def recipe(name: str, options: argparse.Namespace, out: Path) -> dict[str, Any]:
    """Two small steps of a method, as plain values."""
    shared: dict[str, dict[str, Any]] = {
        "data": {"task": options.task, "questions": options.questions, "efforts": ["easy"]},
        "rollouts": {"prompts": 2, "generations": 4, "max_new_tokens": options.tokens, "batch": 32},
        "optimizer": {"steps": 2, "micro_batch": 2, "learning_rate": 1e-4, "lora": {**LORA, "merge": False}},
        "saving": {"every": 2},
    }
    own = OWN[name]
    sections = {key: {**shared.get(key, {}), **own.get(key, {})} for key in {*shared, *own}}
    sections["rollouts"]["thinking_budget"] = options.thinking
    named = {"method": name, "model": options.model, "out": str(out)}
    return named | sections | ({"markers": options.markers} if options.markers else {})


def steps(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """The results of two steps of a method."""
    with tempfile.TemporaryDirectory() as folder:
        out, config = Path(folder) / "run", Path(folder) / "recipe.yaml"
        values = recipe(name, options, out)
        if options.task == SUMS:
            values["data"]["task"] = str(sums(Path(folder) / "sums.jsonl", options.questions))
        config.write_text(yaml.safe_dump(values), encoding="utf-8")
        lines: list[str] = []
        gc.collect()
        with suppress(OSError):
            _PEAK.write_text("5")  # resets the peak
        begun, before = time.perf_counter(), _memory("VmRSS")
        train(name, config, log=lines.append)
        logs = [json.loads(line) for line in (out / "curve.jsonl").read_text(encoding="utf-8").splitlines()]
        result: dict[str, Any] = {
            "loss": [log["loss"] for log in logs if "loss" in log],
            "gradient": [log["grad_norm"] for log in logs if "grad_norm" in log],
            "minutes": (time.perf_counter() - begun) / 60,
            "gib": None if before is None else (_memory("VmHWM") or before) - before,
            "estimated": next(line.removeprefix("memory: ") for line in lines if line.startswith("memory: ")),
        }
        adapter = out / "adapter" / "adapter_model.safetensors"
        if adapter.exists():
            weights = load_file(adapter)
            result["moved"] = max(float(weight.abs().max()) for key, weight in weights.items() if "lora_B" in key)
        return result


def sums(path: Path, count: int) -> Path:
    """Write questions that small models can answer."""
    pairs = [(7 + 5 * i % 40, 3 + 4 * i) for i in range(count)]
    lines = [
        json.dumps({"id": f"sum-{a}-{b}", "problem": f"What is {a} + {b}? Work it out in steps.", "answer": str(a + b)})
        for a, b in pairs
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def _memory(field: str) -> float | None:
    """A memory figure of this process on Linux, in GiB; None elsewhere."""
    lines = _STATUS.read_text(encoding="utf-8").splitlines() if _STATUS.exists() else []
    return next((int(line.split()[1]) / 2**20 for line in lines if line.startswith(f"{field}:")), None)


def main(argv: list[str] | None = None) -> None:
    """Take the steps and print the results."""
    parser = make_parser(__doc__)
    parser.add_argument("--model", default="tersely-tiny-small", help="name or folder (default: %(default)s)")
    parser.add_argument("--markers", help="OPEN,CLOSE, where the model has none of its own")
    parser.add_argument("--task", default="tiny", help="tiny, sums, gym:NAME or a JSONL file (default: %(default)s)")
    parser.add_argument("--methods", default=",".join(OWN), help="separated by commas (default: %(default)s)")
    parser.add_argument("--questions", type=int, default=12, help="(default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=224, help="per completion (default: %(default)s)")
    parser.add_argument("--thinking", type=int, default=96, help="tokens before it is closed (default: %(default)s)")
    options = parser.parse_args(argv)
    import trl  # noqa: F401  # not in the time of the first method

    found: dict[str, Any] = {}
    for name in options.methods.split(","):
        found[name] = steps(name, options)
        print(name, json.dumps(found[name]), file=sys.stderr, flush=True)
    print_figures(found, options.json)


if __name__ == "__main__":
    main()
