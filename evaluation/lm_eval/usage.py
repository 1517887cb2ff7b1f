"""What the requests of a run cost: a line for each in a file beside lm-eval's results, and the means by task."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from ...controller.trace import GenerationResult
from ...io import WriteError, append_line, check_writable

KINDS = ("prompt", "thinking", "answer", "forced", "overhead", "total")


class UsageLog:
    """The lines of one run, kept and, where lm-eval writes results, appended to a file as they are made.

    output_path: as lm-eval's; path: the file, once `open` has placed it.
    """

    def __init__(self, output_path: Path | None = None) -> None:
        self.output_path = output_path
        self.path: Path | None = None
        self.lines: list[Mapping[str, Any]] = []
        self._repeats: Counter[tuple[str, int]] = Counter()

    def open(self, model: str) -> None:
        """Place the file where lm-eval puts the results of a model of this name; raises WriteError."""
        if self.output_path is None:
            return
        folder = self.output_path.parent if self.output_path.suffix == ".json" else self.output_path / model
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise WriteError(f"--output_path {folder} cannot be made: {error.strerror}; choose another") from None
        self.path = folder / f"usage_{datetime.now().isoformat().replace(':', '-')}.jsonl"
        check_writable(self.path, "--output_path")

    def add(self, task: str, doc_id: int, made: GenerationResult) -> None:
        """Take down one answered request; its line is in the file when this returns."""
        usage = made.usage.as_dict()
        line = {
            "task": task,
            "doc_id": doc_id,
            "repeat": self._repeats[task, doc_id],
            **{kind: usage[kind] for kind in KINDS},
            "tier": made.tier,
            "finish_reason": made.finish_reason,
        }
        self._repeats[task, doc_id] += 1
        self.lines.append(line)
        if self.path is not None:
            append_line(self.path, json.dumps(line).encode())

    def means(self) -> dict[str, dict[str, float]]:
        """By task: requests, those cut off by their limit, and mean tokens of a request by kind."""
        tasks: dict[str, dict[str, float]] = {}
        for task in dict.fromkeys(line["task"] for line in self.lines):
            lines = [line for line in self.lines if line["task"] == task]
            cut_off = sum(line["finish_reason"] == "length" for line in lines)
            means = {kind: sum(line[kind] for line in lines) / len(lines) for kind in KINDS}
            tasks[task] = {"requests": len(lines), "cut_off": cut_off, **means}
        return tasks

    def summary(self) -> str:
        """A table of the means, and where the lines are."""
        means = self.means()
        width = max(map(len, ("task", *means)))
        head = " ".join(f"{name:>9}" for name in ("requests", "cut off", *KINDS))
        rows = [
            f"{task:<{width}} {told['requests']:>9} {told['cut_off']:>9} "
            + " ".join(f"{told[kind]:>9.1f}" for kind in KINDS)
            for task, told in means.items()
        ]
        where = f"each request: {self.path}" if self.path else "--output_path DIR keeps the tokens of each request"
        return "\n".join(("mean tokens of a request", f"{'task':<{width}} {head}", *rows, where))
