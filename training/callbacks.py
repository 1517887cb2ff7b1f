"""What watches a training: finite gradients, a policy that collapses, progress, its curve, whole checkpoints."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from ..errors import TerselyError
from ..io import append_line, write
from .config import Alarm
from .sampling import DivergedError

COMPLETE = "complete.json"
CURVE = "curve.jsonl"
SHOWN = {
    "loss": "loss",
    "reward": "reward",
    "policy/accuracy": "accuracy",
    "policy/tokens": "tokens",
    "policy/no_think": "no-think",
}


class CollapseError(TerselyError, RuntimeError):
    """The policy has given up a choice that it was to learn."""


class FiniteGradients(TrainerCallback):  # type: ignore[misc]
    """Raises DivergedError before gradients that are no numbers reach the weights."""

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """See `TrainerCallback`."""
        for name, weight in kwargs["model"].named_parameters():
            if weight.grad is not None and not bool(weight.grad.isfinite().all()):
                raise DivergedError(
                    f"the gradient of {name} in step {state.global_step + 1} is no longer a number; the last good "
                    "checkpoint is kept: go on from it (--resume) with a lower learning rate"
                )


class CollapseAlarm(TrainerCallback):  # type: ignore[misc]
    """Ends a training, or warns, whose policy always thinks, never thinks, or only pretends to.

    What it goes by is in the trainer's log history, so that a resumed training alarms as an uninterrupted one.
    """

    def __init__(self, settings: Alarm, say: Callable[[str], None] = print) -> None:
        self.settings, self.say = settings, say
        self.raised: str | None = None

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """See `TrainerCallback`."""
        found = self.reason([log for log in state.log_history if "policy/no_think" in log])
        if found is None or found == self.raised:
            return
        self.raised = found
        self.say(f"collapse alarm at step {state.global_step}: {found}")
        if self.settings.action == "stop":
            control.should_training_stop = True

    def reason(self, logs: Sequence[Mapping[str, Any]]) -> str | None:
        """What has collapsed by these logs, the latest last; None if nothing."""
        s = self.settings
        recent = [log for log in logs if log["step"] > s.grace][-s.window :]
        if len(recent) < s.window:
            return None
        chances = [float(log["policy/no_think"]) for log in recent]
        empty = [float(log.get("modes/think/empty") or 0.0) for log in recent]
        if max(chances) <= s.all_think:
            return f"it always thinks: its chance not to was at most {max(chances):.4f} in {s.window} logs"
        if min(chances) >= s.no_think:
            return f"it never thinks: its chance not to was at least {min(chances):.4f} in {s.window} logs"
        if min(empty) >= s.empty:
            return f"its thinking is empty: at least {min(empty):.0%} of it in each of {s.window} logs"
        return None


class Progress(TrainerCallback):  # type: ignore[misc]
    """Says at each log how far it is, what it gives, and how long it will take."""

    def __init__(self, say: Callable[[str], None] = print, clock: Callable[[], float] = time.monotonic) -> None:
        self.say, self.clock = say, clock
        self._start, self._from = 0.0, 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """See `TrainerCallback`."""
        self._start, self._from = self.clock(), state.global_step

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """See `TrainerCallback`."""
        done = state.global_step - self._from
        if not state.is_world_process_zero or not done or "loss" not in (logs or {}):
            return
        seconds = (self.clock() - self._start) / done
        left = seconds * (state.max_steps - state.global_step)
        figures = "  ".join(f"{name} {logs[key]:.4g}" for key, name in SHOWN.items() if logs.get(key) is not None)
        self.say(
            f"step {state.global_step}/{state.max_steps} ({state.global_step / state.max_steps:.0%})  {figures}  "
            f"{seconds:.1f} s/step, {left / 60:.0f} min left"
        )


class Curve(TrainerCallback):  # type: ignore[misc]
    """Keeps all logs as JSON lines in `curve.jsonl`; on resuming, what the checkpoint does not know is taken back."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / CURVE

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """See `TrainerCallback`."""
        if state.is_world_process_zero:
            write(self.path, "".join(json.dumps(log) + "\n" for log in state.log_history))

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """See `TrainerCallback`."""
        if state.is_world_process_zero:
            append_line(self.path, json.dumps(state.log_history[-1]).encode())


class Completed(TrainerCallback):  # type: ignore[misc]
    """Marks a checkpoint as good once the step after it went well: one of weights that have blown up never is."""

    def __init__(self) -> None:
        self._pending: Path | None = None

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """See `TrainerCallback`."""
        self._pending = Path(args.output_dir) / f"checkpoint-{state.global_step}"

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """See `TrainerCallback`."""
        if self._pending is not None and state.is_world_process_zero:
            write(self._pending / COMPLETE, json.dumps({"seen_good_at": state.global_step}) + "\n")
        self._pending = None

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """See `TrainerCallback`."""
        self.on_step_end(args, state, control)


def last_good(folder: Path) -> Path | None:
    """The latest whole checkpoint of a training; what a crash left half written is removed."""
    good = good_checkpoints(folder)
    for _, checkpoint in _checkpoints(folder):
        if checkpoint not in good:
            shutil.rmtree(checkpoint)
    return good[-1] if good else None


def good_checkpoints(folder: Path) -> list[Path]:
    """The whole checkpoints of a training, the latest last."""
    return [checkpoint for _, checkpoint in sorted(_checkpoints(folder)) if (checkpoint / COMPLETE).is_file()]


def _checkpoints(folder: Path) -> Iterator[tuple[int, Path]]:
    for path in folder.glob("checkpoint-*"):
        step = path.name.removeprefix("checkpoint-")
        if path.is_dir() and step.isdigit():
            yield int(step), path
