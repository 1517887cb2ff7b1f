"""The blocks of the docs, run in small: models that are not here are replaced, and questions are few."""

from __future__ import annotations

import importlib.util
import json
import re
import runpy
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from tersely.cli.app import main

from ..support.readme import code_blocks

ROOT = Path(__file__).parents[2]
QUESTION = "Kai has 48 shells. Kai finds 31 shells. Count the shells that belong to Kai."
MODELS = {r"Qwen/Qwen3-[\w.]+": "tersely-tiny-large", r"What is 17 \* 23\?": QUESTION}

# What is replaced in a block that runs here, patterns and texts.
SMALL: dict[tuple[str, int], dict[str, str]] = {
    ("AGENTS.md", 1): {},
    ("AGENTS.md", 2): {},
    ("AGENTS.md", 3): {', probes="probes/"': ""},
    ("AGENTS.md", 4): {
        r"Qwen/Qwen3-[\w.]+\", \"router/": "tersely-tiny-agent",
        r"agent\.invoke\(\.\.\.\)": 'agent.invoke({"messages": [ask]})',
    },
    ("AGENTS.md", 6): {},
    ("GUIDE.md", 0): {},
    ("GUIDE.md", 1): {},
    ("GUIDE.md", 2): {"--engine vllm": "--limit 2 --max-new-tokens 120 --no-baselines"},
    ("LM_EVAL.md", 1): {"--limit 40": "--limit 4"},
    ("REPLAY.md", 0): {r"0\.01": "0.8"},
    ("STATISTICS.md", 0): {r"verdicts\.py.*": "verdicts.py --sims 2 --resamples 20"},
}
# Why a block is not run here, or which test runs its like.
ELSEWHERE = {
    ("AGENTS.md", 0): "tests/e2e/test_examples.py",
    ("AGENTS.md", 5): "tests/cli/test_agents_command.py",
    ("GATEWAY.md", 0): "tests/e2e/test_serving_upstream.py",
    ("GSM8K.md", 0): "a real model",
    ("GSM8K.md", 1): "two real models",
    ("GUIDE.md", 3): "tests/e2e/test_serving_config.py",
    ("GUIDE.md", 4): "tests/e2e/test_collect.py and tests/unit/probes",
    ("INTEGRATIONS.md", 0): "tests/integrations/test_hub_generate.py",
    ("INTEGRATIONS.md", 1): "tests/e2e/test_serving_life.py",
    ("INTEGRATIONS.md", 2): "a package; tests/integrations/test_eval_frameworks.py",
    ("INTEGRATIONS.md", 3): "tests/e2e/test_serving_life.py",
    ("INTEGRATIONS.md", 4): "a package; tests/integrations/test_eval_frameworks.py",
    ("INTEGRATIONS.md", 5): "a GPU; its processor in tests/integrations/test_sglang.py",
    ("INTEGRATIONS.md", 6): "a GPU",
    ("LM_EVAL.md", 0): "a real model and a download",
    ("LM_EVAL.md", 2): "tests/integrations/test_lm_eval.py",
    ("PROBES.md", 0): "tests/e2e/test_collect.py",
    ("PROBES.md", 1): "tests/unit/evaluation/test_calibrate_logs.py",
    ("PROBES.md", 2): "hours of the embedded model",
    ("PROBES.md", 3): "a real model",
    ("QUANTIZATION.md", 0): "tests/kernels",
    ("QUANTIZATION.md", 1): "a real model",
    ("REMOTE.md", 0): "tests/engines",
    ("SERVING.md", 0): "tests/e2e/test_serving_clients.py",
    ("SERVING.md", 1): "tests/e2e/test_serving_clients.py",
    ("TRAINING.md", 0): "tests/e2e/test_training_runs.py",
    ("TRAINING.md", 1): "a real model; tests/e2e/test_training_runs.py",
    ("TRAINING.md", 2): "tests/e2e/test_training_processes.py",
    ("TRAINING.md", 3): "tests/e2e/test_training_methods.py",
    ("TRAINING.md", 4): "tests/integrations/test_trl_trainer.py",
    ("TRAINING.md", 5): "tests/e2e/test_training_methods.py",
    ("TRAINING.md", 6): "tests/engines/test_guided.py",
    ("TRAINING.md", 7): "tests/engines/test_guided.py",
    ("TRAINING.md", 8): "tests/e2e/test_training_methods.py",
    ("TRAINING.md", 9): "ten minutes; in small in tests/fidelity/test_system15.py",
    ("VLLM.md", 0): "the same block of README in tests/e2e/test_examples.py",
    ("VLLM.md", 1): "a real model; its like in tests/e2e/test_serving_vllm.py",
    ("VLLM.md", 2): "a GPU",
    ("VLLM.md", 3): "a GPU; in small in tests/engines/test_gpu_check.py",
    ("VLLM.md", 4): "GPUs",
    ("VLLM.md", 5): "Ray",
}


def get_block(doc: str, place: int) -> str:
    text = code_blocks(ROOT / "docs" / doc, "python", "console")[place]
    for pattern, new in (SMALL[doc, place] | MODELS).items():
        text = re.sub(pattern, new, text, flags=re.M)
    return text


def test_every_block_runs_or_says_why_not() -> None:
    found = {
        (path.name, place)
        for path in (ROOT / "docs").glob("*.md")
        for place in range(len(code_blocks(path, "python", "console")))
    }
    assert found == {*SMALL, *ELSEWHERE}
    named = [part for why in ELSEWHERE.values() for part in re.findall(r"tests/[\w./]+", why)]
    assert [path for path in named if not (ROOT / path).exists()] == []


CONSOLE = [key for key in SMALL if code_blocks(ROOT / "docs" / key[0], "python", "console")[key[1]].startswith("$")]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the files that the docs name."""
    shutil.copy(ROOT / "examples/own_policy.py", tmp_path / "own.py")
    (tmp_path / "training").symlink_to(ROOT / "training")
    thinking = "48 + 31 = 79, so the answer is 79.\n\nWait, let me check. 48 + 31 = 79. So the answer is 79.\n\n" * 4
    message = {"content": "The answer is 79.", "reasoning": thinking}
    row = {
        "request": {"messages": [{"role": "user", "content": QUESTION}]},
        "response": {"choices": [{"finish_reason": "stop", "message": message}]},
    }
    (tmp_path / "logs.jsonl").write_text(f"{json.dumps(row)}\n" * 3)
    names = "Kai Lea Ted Mia Ann Ben Eva Ida Leo Max Noa Tom".split()
    questions = [{"question": QUESTION.replace("Kai", name), "answer": "48 + 31 = 79\n#### 79"} for name in names]
    (tmp_path / "questions.jsonl").write_text("".join(f"{json.dumps(question)}\n" for question in questions))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize(("doc", "place"), CONSOLE, ids=lambda value: str(value))
def test_commands_end_well(
    doc: str, place: int, folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for line in get_block(doc, place).replace("\\\n", " ").splitlines():
        if not line.startswith("$ "):
            continue
        program, *arguments = shlex.split(line[2:], comments=True)
        *arguments, out = arguments if len(arguments) > 1 and arguments[-2] == ">" else [*arguments, ""]
        if program == "python":
            monkeypatch.setattr(sys, "argv", arguments)
            runpy.run_path(str(ROOT / arguments[0]), run_name="__main__")
        else:
            code = main([part for part in arguments if part != ">"])
            judged = arguments[0] == "bench" and Path("bench.json").exists()  # its code is a verdict on few questions
            assert code == 0 or judged, (line, capfd.readouterr().err)
        if out:
            Path(out).write_text(capfd.readouterr().out)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The middleware `ModelRouterMiddleware` is in beta")
def test_the_chat_model_and_its_middleware_answer() -> None:
    from langchain_core.tools import tool

    @tool
    def look_up(name: str) -> str:
        """Look a name up."""
        return name

    names: dict[str, Any] = {"tools": [look_up], "ask": {"role": "user", "content": QUESTION}}
    exec(get_block("AGENTS.md", 1), names)
    assert "79" in names["message"].text
    names |= {"small": names["model"], "large": names["model"]}
    exec(get_block("AGENTS.md", 2), names)
    exec(get_block("AGENTS.md", 3), names)
    exec(get_block("AGENTS.md", 4), names)
    assert names["agent"].invoke({"messages": [names["ask"]]})["tersely_mode"]


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("llama_index") is None, reason="needs tersely[llamaindex]")
def test_the_llamaindex_block_answers() -> None:
    names: dict[str, Any] = {}
    exec(get_block("AGENTS.md", 6), names)
    assert "79" in names["response"].text
