"""What a training leaves behind: a model in a form that `tersely run --model` takes, and adapters."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..io import WriteError, atomic_dir
from .config import Lora

Finish = Callable[[Any, Path], None]
"""What is still done to a model before it is written, and put beside it into the folder where it is going to be."""
MODEL = "model"
ADAPTER = "adapter"


def save_model(model: Any, tokenizer: Any, lora: Lora | None, folder: Path, finish: Finish | None = None) -> Path:
    """Write the model, and of an adapter both it and the model with it merged in; where the last of them is."""
    if lora is not None:
        with _model_folder(folder / ADAPTER) as part:
            model.save_pretrained(part)
        if not lora.merge:
            return folder / ADAPTER
        model = model.merge_and_unload()
    return write_model(model, tokenizer, folder / MODEL, finish)


def write_model(model: Any, tokenizer: Any, out: Path, finish: Finish | None = None) -> Path:
    """Write a model and its tokenizer whole or not at all, in the place of what is there; raises WriteError."""
    with _model_folder(out) as part:
        if finish is not None:
            finish(model, part)
        model.save_pretrained(part)
        tokenizer.save_pretrained(part)
    return out


@contextmanager
def _model_folder(out: Path) -> Iterator[Path]:
    """See `atomic_dir`; safetensors has errors of its own for disks that are full."""
    from safetensors import SafetensorError

    try:
        with atomic_dir(out) as part:
            yield part
    except SafetensorError as error:
        raise WriteError(f"{out} cannot be written: {error}; make room there") from None
