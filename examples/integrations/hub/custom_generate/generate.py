"""tersely as a generation method of the Hub: `model.generate(..., custom_generate=FOLDER, trust_remote_code=True)`."""

from __future__ import annotations

from typing import Any

from transformers import AutoTokenizer

import tersely
from tersely.errors import OptionError


def generate(
    model: Any,
    tokenizer: Any = None,
    tersely_preset: str = "balanced",
    tersely_effort: str = "normal",
    tersely_results: list[Any] | None = None,
    streamer: Any = None,
    stop_strings: Any = None,
    **arguments: Any,
) -> Any:
    """What `model.generate` returns for these arguments, with the thinking under control.

    `tokenizer` is loaded from where the model came from if it is not given. `tersely_results` is a list that gets the
    trace and the usage of each row. Raises OptionError without a limit on new tokens, which the answer's reserve needs.
    """
    if tokenizer is None:
        tokenizer = AutoTokenizer.from_pretrained(model.config._name_or_path)
    control = tersely.custom_generate(
        tokenizer,
        preset=tersely_preset,
        effort=tersely_effort,
        max_new_tokens=_count_new_tokens(model, arguments),
        streamer=streamer,
        stop_strings=[stop_strings] if isinstance(stop_strings, str) else stop_strings,
    )
    output = model.generate(**arguments, custom_generate=control)
    if tersely_results is not None:
        tersely_results[:] = control.results
    return output


def _count_new_tokens(model: Any, arguments: dict[str, Any]) -> int:
    """How many tokens a row may get at most."""
    configs = (arguments.get("generation_config"), model.generation_config)
    for limit in (arguments.get("max_new_tokens"), *(getattr(config, "max_new_tokens", None) for config in configs)):
        if limit is not None:
            return int(limit)
    raise OptionError("max_new_tokens is not set; accepted: a number, here or in the generation config")
