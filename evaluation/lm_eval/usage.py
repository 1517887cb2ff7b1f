"""Token usage of an lm-eval run: one line per request in a file next to the results, and the means by task."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from ...controller.trace import GenerationResult
from ...io import WriteError, append_line, check_writable

KINDS: Mapping[str, str] = {
    "prompt": "prompt",
    "thinking": "thinking",
    "answer": "answer",
    "forced": "injected",
    "overhead": "overhead",
    "total": "total",
}
"""Kinds of tokens by their name in the usage file, with their name in `Usage`."""


class UsageLog:
    """The usage of each request of one run, appended to the file `path` if lm-eval has an `--output_path`."""

    def __init__(self, output_path: Path | None = None) -> None:
        self.output_path = output_path
        self.path: Path | None = None
        self.lines: list[Mapping[str, Any]] = []
        self._repeats: Counter[tuple[str, int]] = Counter()

    def open(self, model: str) -> None:
        """Choose a file where lm-eval puts this model's results; raises WriteError."""
        if self.output_path is None:
            return
        folder = self.output_path.parent if self.output_path.suffix == ".json" else self.output_path / model
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise WriteError(f"cannot create --output_path {folder}: {error.strerror}; choose another") from None
        self.path = folder / f"usage_{datetime.now().isoformat().replace(':', '-')}.jsonl"
        check_writable(self.path, "--output_path")

    def add(self, task: str, doc_id: int, result: GenerationResult) -> None:
        """Record one answered request."""
        usage = result.usage.as_dict()
        line = {
            "task": task,
            "doc_id": doc_id,
            "repeat": self._repeats[task, doc_id],
            **{kind: usage[field] for kind, field in KINDS.items()},
            "tier": result.tier,
            "finish_reason": result.finish_reason,
        }
        self._repeats[task, doc_id] += 1
        self.lines.append(line)
        if self.path is not None:
            append_line(self.path, json.dumps(line).encode())

    def means(self) -> dict[str, dict[str, float]]:
        """By task: the number of requests, those cut off by their limit, and mean tokens per request by kind."""
        tasks: dict[str, dict[str, float]] = {}
        for task in dict.fromkeys(line["task"] for line in self.lines):
            lines = [line for line in self.lines if line["task"] == task]
            cut_off = sum(line["finish_reason"] == "length" for line in lines)
            means = {kind: sum(line[kind] for line in lines) / len(lines) for kind in KINDS}
            tasks[task] = {"requests": len(lines), "cut_off": cut_off, **means}
        return tasks

    def summary(self) -> str:
        """The means as a table, and the path of the file."""
        means = self.means()
        width = max(map(len, ("task", *means)))
        header = " ".join(f"{name:>9}" for name in ("requests", "cut off", *KINDS))
        rows = [
            f"{task:<{width}} {row['requests']:>9} {row['cut_off']:>9} "
            + " ".join(f"{row[kind]:>9.1f}" for kind in KINDS)
            for task, row in means.items()
        ]
        where = (
            f"each request: {self.path}" if self.path else "pass --output_path DIR to keep the tokens of each request"
        )
        return "\n".join(("mean tokens per request", f"{'task':<{width}} {header}", *rows, where))
