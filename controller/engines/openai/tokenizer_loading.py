"""The tokenizer of a model that runs elsewhere: needed here for templates, markers and what policies read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ....errors import ModelError
from ..checkpoints import check_tokenizer, load_or_raise, resolve_checkpoint


def load_tokenizer(given: Any, names: Sequence[str]) -> Any:
    """A tokenizer as it is, or that of a folder or name; None tries the names that a server gives its model.

    Raises ModelError where there is none.
    """
    if given is not None:
        return _load(str(given)) if isinstance(given, (str, Path)) else given
    reasons = []
    for name in dict.fromkeys(names):
        try:
            return _load(name)
        except ModelError as error:
            reasons.append(str(error))
    raise ModelError(f"no tokenizer is at hand for {names[0]!r}; name one (tokenizer): {'; '.join(reasons)}")


def _load(name: str) -> Any:
    folder = Path(name).expanduser()
    place = str(folder) if folder.is_dir() else resolve_checkpoint(name)
    check_tokenizer(name, Path(place))
    from transformers import AutoTokenizer

    return load_or_raise(name, "tokenizer", lambda: AutoTokenizer.from_pretrained(place))
