"""lighteval on a model that `tersely serve` serves, through its LiteLLM backend.

tersely serve tersely-tiny-large --port 8000 --effort medium --preset balanced  # in another shell, in this folder:
lighteval endpoint litellm lighteval_model.yaml tersely_arithmetic --custom-tasks lighteval_task.py

The backend sends no effort of its own: the server's `--effort`, `--preset` or `--config` decide.
"""

from __future__ import annotations

from pathlib import Path

from lighteval.metrics.metrics import Metrics
from lighteval.tasks.lighteval_task import LightevalTaskConfig
from lighteval.tasks.requests import Doc

PROBLEMS = Path(__file__).parent.resolve() / "problems"


def make_doc(line: dict[str, str], task_name: str = "") -> Doc:
    return Doc(task_name=task_name, query=line["question"], choices=[line["answer"]], gold_index=0)


TASKS_TABLE = [
    LightevalTaskConfig(
        name="tersely_arithmetic",
        prompt_function=make_doc,
        hf_repo=str(PROBLEMS),
        hf_subset="default",
        hf_avail_splits=["test"],
        evaluation_splits=["test"],
        generation_size=512,
        metrics=[Metrics.expr_gold_metric],
    )
]
