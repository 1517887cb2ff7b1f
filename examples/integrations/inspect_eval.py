"""Inspect (inspect-ai) on a model that `tersely serve` serves; the effort of the requests is Inspect's own option.

tersely serve tersely-tiny-large --port 8000  # and in another shell, in this folder:
export TERSELY_BASE_URL=http://127.0.0.1:8000/v1 TERSELY_API_KEY=none  # start no server here: it would read them
inspect eval inspect_eval.py --model openai-api/tersely/tersely-tiny-large --reasoning-effort medium
inspect eval inspect_eval.py --model openai-api/tersely/tersely-tiny-large -T preset=off

The summary of a run has the tokens of its answers (O) with those of the thinking (R).
"""

from __future__ import annotations

from pathlib import Path

from inspect_ai import Task, task
from inspect_ai.dataset import FieldSpec, json_dataset
from inspect_ai.model import GenerateConfig
from inspect_ai.scorer import pattern

PROBLEMS = Path(__file__).parent.resolve() / "problems" / "test.jsonl"


@task
def arithmetic(preset: str | bool = "balanced") -> Task:
    """Five problems of the embedded models' family, answered under a preset."""
    name = preset or "off"  # Inspect reads `-T preset=off` as false
    return Task(
        dataset=json_dataset(str(PROBLEMS), FieldSpec(input="question", target="answer")),
        scorer=pattern(r"\\boxed\{(-?\d+)\}"),
        config=GenerateConfig(temperature=0, max_tokens=512, extra_body={"tersely": {"preset": name}}),
    )
