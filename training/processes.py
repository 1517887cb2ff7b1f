"""Data parallelism: several processes of one run, started by torchrun or `accelerate launch`, with a full model each.

They divide every step among them, so a recipe means the same whatever their number. Work that one process does for all
goes through `rank0_only`, work that they divide through `resumable_map`. Both need a disk that all processes share.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import TerselyError
from ..io import CheckpointLog
from .config import RecipeError

if TYPE_CHECKING:
    from accelerate import PartialState

T = TypeVar("T")
R = TypeVar("R")
_TIMEOUT = timedelta(days=7)  # how long processes wait for the slowest. If one dies, its launcher ends the others.
_SHARDING = tuple(f"ACCELERATE_USE_{name}" for name in ("FSDP", "DEEPSPEED", "MEGATRON_LM", "PARALLELISM_CONFIG"))
_PRECISION = "ACCELERATE_MIXED_PRECISION"


def world_size() -> int:
    """The number of processes, as set by the launcher."""
    return int(os.environ.get("WORLD_SIZE") or 1)


def is_rank0() -> bool:
    """Whether this is the first process, which logs for all."""
    return int(os.environ.get("RANK") or 0) == 0


def check_launcher(engine: str, autocast: bool) -> None:
    """Refuse launcher settings that contradict the recipe or are not supported; raises RecipeError."""
    if (asked := os.environ.get(_PRECISION, "no").lower()) not in ("no", "", "bf16" if autocast else "no"):
        raise RecipeError(
            f"{_PRECISION} is {asked}, but the recipe sets the precision (optimizer.autocast); launch with "
            "--mixed_precision no",
            code="launcher_precision",
        )
    if sharding := [name for name in _SHARDING if os.environ.get(name, "").lower() in ("1", "true")]:
        raise RecipeError(
            f"{sharding[0]} shards the model; accepted: processes that each hold the full model", code="sharded_model"
        )
    if engine == "vllm" and world_size() > 1:
        raise RecipeError(
            f"rollouts.engine is vllm and there are {world_size()} processes, each of which would start a vLLM; start "
            "one process, or use transformers",
            code="vllm_in_several_processes",
        )


def connect_processes() -> PartialState:
    """Accelerate's `PartialState`, which connects the processes; raises RecipeError if some are missing."""
    import torch
    from accelerate import PartialState

    expected = world_size()
    state = PartialState(cpu=not torch.cuda.is_available(), **({"timeout": _TIMEOUT} if expected > 1 else {}))
    if state.num_processes != expected:
        raise RecipeError(
            f"WORLD_SIZE is {expected}, but {state.num_processes} processes are connected; start them with torchrun or "
            "`accelerate launch`, or unset WORLD_SIZE",
            code="missing_processes",
        )
    return state


def shutdown() -> None:
    """Wait for all processes, then leave the process group."""
    if world_size() > 1:
        from accelerate.state import AcceleratorState

        state = connect_processes()
        state.wait_for_everyone()
        state.destroy_process_group()
        AcceleratorState._reset_state(reset_partial_state=True)


def rank0_only(make: Callable[[], T]) -> T:
    """Call `make` in the first process; all processes return its value or raise its TerselyError."""
    state = connect_processes()
    if state.num_processes == 1:
        return make()
    from accelerate.utils import broadcast_object_list

    outcome: list[Any] = [None, None]
    if state.is_main_process:
        try:
            outcome[0] = make()
        except TerselyError as error:
            outcome[1] = error
    value, failure = broadcast_object_list(outcome)
    if failure is not None:
        raise failure
    return value  # type: ignore[no-any-return]


def resumable_map(
    path: Path,
    identity: Mapping[str, Any],
    rows: Sequence[R],
    size: int,  # rows per chunk
    make: Callable[[Sequence[R], int], list[T]],  # called with a chunk and the index of its first row
    on_progress: Callable[[int], None] = lambda done: None,  # called with the number of finished rows
) -> list[T]:
    """Map `make` over chunks of rows, divided among the processes, and concatenate its results (in JSON form).

    Each chunk is on disk before its process begins the next, so an interrupted run repeats none of them, and may be
    resumed by another number of processes. Raises CheckpointLogError if the file belongs to a run of another identity.
    """
    state = connect_processes()
    starts = range(0, len(rows), size)
    done = _read_chunks(path, identity)
    state.wait_for_everyone()  # no process may write while others still read
    missing = [at for at in starts if str(at) not in done]
    process = state.process_index
    own = CheckpointLog(path.with_stem(f"{path.stem}-{process}") if process else path, identity)
    for number, at in enumerate(missing[process :: state.num_processes]):
        left = missing[number * state.num_processes :]
        on_progress(len(rows) - sum(len(rows[start : start + size]) for start in left))
        own.get_or_compute(str(at), lambda at=at: make(rows[at : at + size], at))  # type: ignore[misc]
    state.wait_for_everyone()
    on_progress(len(rows))
    done = _read_chunks(path, identity)
    if lost := [at for at in starts if str(at) not in done]:
        raise RecipeError(
            f"process {process} cannot find chunk {lost[0]} of {path}; all processes need the same disk",
            code="no_shared_disk",
        )
    return [item for at in starts for item in done[str(at)]]


def _read_chunks(path: Path, identity: Mapping[str, Any]) -> dict[str, Any]:
    """The chunks that any process has finished, by key."""
    paths = (path, *path.parent.glob(f"{path.stem}-[0-9]*{path.suffix}"))
    return {key: value for part in paths for key, value in CheckpointLog(part, identity).completed.items()}
