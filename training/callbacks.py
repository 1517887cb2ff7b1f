"""Trainer callbacks: finite gradients, collapse of the policy, and the record of a run."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from ..errors import TerselyError
from ..io import append_line, write
from .config import Alarm
from .sampling import DivergedError

COMPLETE = "complete.json"
CURVE = "curve.jsonl"
_SHOWN = {
    "loss": "loss",
    "reward": "reward",
    "policy/accuracy": "accuracy",
    "policy/tokens": "tokens",
    "policy/no_think": "no-think",
}


class CollapseError(TerselyError, RuntimeError):
    """The policy has collapsed: it always thinks, never thinks, or thinks without content."""

    code = "policy_collapsed"


class GradientGuard(TrainerCallback):  # type: ignore[misc]
    """Raises DivergedError before non-finite gradients change the weights."""

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """See `TrainerCallback`."""
        for name, weight in kwargs["model"].named_parameters():
            if weight.grad is not None and not bool(weight.grad.isfinite().all()):
                raise DivergedError(
                    f"the gradient of {name} in step {state.global_step + 1} is not finite; the last good "
                    "checkpoint is kept, resume from it (--resume) with a lower learning rate"
                )


class CollapseAlarm(TrainerCallback):  # type: ignore[misc]
    """Stops the training, or warns, when the policy collapses; by the log history, so that resumed runs alarm alike."""

    def __init__(self, settings: Alarm, log: Callable[[str], None]) -> None:
        self.settings, self.log = settings, log
        self.raised: str | None = None

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """See `TrainerCallback`."""
        reason = self.find_collapse([log for log in state.log_history if "policy/no_think" in log])
        if reason is None or reason == self.raised:
            return
        self.raised = reason
        self.log(f"collapse alarm at step {state.global_step}: {reason}")
        if self.settings.action == "stop":
            control.should_training_stop = True

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """See `TrainerCallback`; raises CollapseError."""
        if self.raised is not None and self.settings.action == "stop":
            raise CollapseError(
                f"training was stopped at step {state.global_step}: {self.raised}; its checkpoints are in "
                f"{args.output_dir}; change `alarm` in the recipe to stop later or only to warn"
            )

    def find_collapse(self, logs: Sequence[Mapping[str, Any]]) -> str | None:
        """The reason why these logs, the latest last, show a collapse; None if they do not."""
        s = self.settings
        recent = [log for log in logs if log["step"] > s.grace][-s.window :]
        if len(recent) < s.window:
            return None
        no_think = [float(log["policy/no_think"]) for log in recent]
        empty = [float(log.get("modes/think/empty") or 0.0) for log in recent]
        if max(no_think) <= s.all_think:
            return f"it always thinks: P(no thinking) was at most {max(no_think):.4f} in {s.window} logs"
        if min(no_think) >= s.no_think:
            return f"it never thinks: P(no thinking) was at least {min(no_think):.4f} in {s.window} logs"
        if min(empty) >= s.empty:
            return f"its thinking is empty: at least {min(empty):.0%} of it in each of {s.window} logs"
        return None


class RunRecorder(TrainerCallback):  # type: ignore[misc]
    """Logs progress, writes all logs to `curve.jsonl` (up to the checkpoint on resuming), and marks good checkpoints.

    A checkpoint is good once the next step has succeeded, which a diverged model's never does.
    """

    def __init__(self, folder: Path, log: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self.curve, self.log, self.clock = folder / CURVE, log, clock
        self._start_time, self._start_step = 0.0, 0
        self._pending: Path | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """See `TrainerCallback`."""
        self._start_time, self._start_step = self.clock(), state.global_step
        if state.is_world_process_zero:
            write(self.curve, "".join(json.dumps(log) + "\n" for log in state.log_history))

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """See `TrainerCallback`."""
        if not state.is_world_process_zero:
            return
        logs, steps = state.log_history[-1], state.global_step - self._start_step
        append_line(self.curve, json.dumps(logs).encode())
        if not steps or "loss" not in logs:
            return
        seconds = (self.clock() - self._start_time) / steps
        minutes = seconds * (state.max_steps - state.global_step) / 60
        metrics = "  ".join(f"{name} {logs[key]:.4g}" for key, name in _SHOWN.items() if logs.get(key) is not None)
        self.log(
            f"step {state.global_step}/{state.max_steps} ({state.global_step / state.max_steps:.0%})  {metrics}  "
            f"{seconds:.1f} s/step, {minutes:.0f} min left"
        )

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """See `TrainerCallback`."""
        self._pending = Path(args.output_dir) / f"checkpoint-{state.global_step}"

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """See `TrainerCallback`."""
        if self._pending is not None and state.is_world_process_zero:
            write(self._pending / COMPLETE, json.dumps({"seen_good_at": state.global_step}) + "\n")
        self._pending = None

    on_train_end = on_step_end


def prune_checkpoints(folder: Path) -> Path | None:
    """Remove the checkpoints that are not good, such as half-written ones, and return the latest good one."""
    good = list_good_checkpoints(folder)
    for checkpoint in set(folder.glob("checkpoint-[0-9]*")).difference(good):
        shutil.rmtree(checkpoint)
    return good[-1] if good else None


def list_good_checkpoints(folder: Path) -> list[Path]:
    """The good checkpoints of a run, the latest last."""
    good = (path.parent for path in folder.glob(f"checkpoint-[0-9]*/{COMPLETE}"))
    return sorted(good, key=lambda checkpoint: int(checkpoint.name.removeprefix("checkpoint-")))
