"""Several processes of one training, as torchrun or `accelerate launch` start them: each has the whole model.

They share out every step, so that a recipe means the same however many there are. What one does for all goes through
`rank0_only`, what each does a share of through `resumable_map`; both need a disk that all of them see.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from ..checkpoint_log import CheckpointLog
from ..errors import TerselyError
from .config import RecipeError

T = TypeVar("T")
R = TypeVar("R")
_PATIENCE = timedelta(days=7)
"""How long processes wait for the slowest; one that has died takes the others with it by its launcher."""
_DIVIDING = tuple(f"ACCELERATE_USE_{name}" for name in ("FSDP", "DEEPSPEED", "MEGATRON_LM", "PARALLELISM_CONFIG"))
_PRECISION = "ACCELERATE_MIXED_PRECISION"


def count() -> int:
    """How many processes there are, by what launchers say."""
    return int(os.environ.get("WORLD_SIZE") or 1)


def is_first() -> bool:
    """Whether this one speaks for all."""
    return int(os.environ.get("RANK") or 0) == 0


def check_processes(engine: str, autocast: bool) -> None:
    """Refuse what a launcher asks for and a recipe does not say, or cannot have in several; raises RecipeError.

    engine: that writes the rollouts. autocast: whether the recipe has bfloat16 computed in.
    """
    if (asked := os.environ.get(_PRECISION, "no").lower()) not in ("no", "", "bf16" if autocast else "no"):
        raise RecipeError(
            f"{_PRECISION} is {asked}, and precision is up to the recipe (optimiser.autocast); launch with "
            "--mixed_precision no"
        )
    if dividing := [name for name in _DIVIDING if os.environ.get(name, "").lower() in ("1", "true")]:
        raise RecipeError(f"{dividing[0]} divides the model among processes; accepted: processes with a whole one each")
    if engine == "vllm" and count() > 1:
        raise RecipeError(
            f"rollouts.engine is vllm and there are {count()} processes, of which each would hold a vLLM; start one, "
            "or use transformers"
        )


def joined() -> Any:
    """This process among the others, which accelerate's `PartialState` connects; raises RecipeError if they differ."""
    import torch
    from accelerate import PartialState

    told = count()
    here = PartialState(cpu=not torch.cuda.is_available(), **({"timeout": _PATIENCE} if told > 1 else {}))
    if here.num_processes != told:
        raise RecipeError(
            f"WORLD_SIZE tells of {told} processes and {here.num_processes} found each other; start them by torchrun "
            "or `accelerate launch`, or unset it"
        )
    return here


def shutdown() -> None:
    """Let nobody go before all are done."""
    if count() > 1:
        import torch
        from accelerate.state import AcceleratorState

        joined().wait_for_everyone()
        torch.distributed.destroy_process_group()
        AcceleratorState._reset_state(reset_partial_state=True)


def rank0_only(make: Callable[[], T]) -> T:
    """What the first process makes, for all; its errors of ours, too. The others wait."""
    here = joined()
    if here.num_processes == 1:
        return make()
    from accelerate.utils import broadcast_object_list

    found: list[Any] = [None, None]
    if here.is_main_process:
        try:
            found[0] = make()
        except TerselyError as error:
            found[1] = error
    made, failed = broadcast_object_list(found)
    if failed is not None:
        raise failed
    return made  # type: ignore[no-any-return]


def resumable_map(
    path: Path,
    identity: Mapping[str, Any],
    rows: Sequence[R],
    size: int,
    make: Callable[[Sequence[R], int], list[T]],
    advance: Callable[[int], None] = lambda done: None,
    key: str = "",
) -> list[T]:
    """What `make`, given `size` rows at a time and the place of their first, comes to, end to end, in JSON form.

    Each piece is on disk before its process begins the next, so a training that was killed makes none twice, whatever
    number of processes goes on. advance is told how many rows are done, so far as this process knows. key: what pieces
    are called before their number. Raises JournalError for a file of another identity.
    """
    here = joined()
    starts = range(0, len(rows), size)
    known = _kept(path, identity)
    here.wait_for_everyone()  # before any goes on writing what others still read
    missing = [at for at in starts if f"{key}{at}" not in known]
    mine, all_done = missing[here.process_index :: here.num_processes], len(rows)
    own = CheckpointLog(_part(path, here.process_index), identity)
    for number, at in enumerate(mine):
        advance(all_done - sum(len(rows[left : left + size]) for left in missing[number * here.num_processes :]))
        own.get_or_compute(f"{key}{at}", lambda at=at: make(rows[at : at + size], at))  # type: ignore[misc]
    here.wait_for_everyone()
    advance(all_done)
    known = _kept(path, identity)
    if lost := [at for at in starts if f"{key}{at}" not in known]:
        raise RecipeError(f"process {here.process_index} lacks piece {lost[0]} of {path}; all need the same disk")
    return [one for at in starts for one in known[f"{key}{at}"]]


def _part(path: Path, process: int) -> Path:
    """Where a process writes its pieces."""
    return path.with_stem(f"{path.stem}-{process}") if process else path


def _kept(path: Path, identity: Mapping[str, Any]) -> dict[str, Any]:
    """The pieces that any process has made, by key."""
    parts = (path, *path.parent.glob(f"{path.stem}-[0-9]*{path.suffix}"))
    return {key: made for part in parts for key, made in CheckpointLog(part, identity).completed.items()}
