"""tersely as a generation method of the Hub: `model.generate(..., custom_generate=FOLDER, trust_remote_code=True)`."""

from __future__ import annotations

from typing import Any

from transformers import AutoTokenizer

import tersely


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
    trace and the usage of each row. Raises OptionError where `max_new_tokens` leaves no more than the answer's reserve.
    """
    if tokenizer is None:
        tokenizer = AutoTokenizer.from_pretrained(model.config._name_or_path)
    control = tersely.custom_generate(
        tokenizer,
        preset=tersely_preset,
        effort=tersely_effort,
        streamer=streamer,
        stop_strings=[stop_strings] if isinstance(stop_strings, str) else stop_strings,
    )
    output = model.generate(**arguments, custom_generate=control)
    if tersely_results is not None:
        tersely_results[:] = control.results
    return output
