"""The tokenizer that vLLM will load, before the model is: what cannot be controlled is refused at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...errors import ModelError
from ..text.tokenizer_adapter import check_tokenizer

OPTIONS = ("tokenizer", "tokenizer_mode", "tokenizer_revision", "revision", "trust_remote_code")
"""What decides on a tokenizer, among vLLM's arguments and in its configuration of a model."""


def load_tokenizer(model: str, options: Mapping[str, Any]) -> Any:
    """The tokenizer of a model under vLLM's arguments, of which `OPTIONS` count.

    Raises ModelError where it cannot be loaded, CapabilityError for one of Mistral's.
    """
    from vllm.tokenizers import cached_get_tokenizer

    name = options.get("tokenizer") or model
    try:
        tokenizer = cached_get_tokenizer(
            name,
            tokenizer_mode=options.get("tokenizer_mode") or "auto",
            revision=options.get("tokenizer_revision") or options.get("revision"),
            trust_remote_code=bool(options.get("trust_remote_code")),
        )
    except (ImportError, OSError, ValueError) as error:
        raise ModelError(
            f"the tokenizer {name!r} cannot be loaded: {error}; see --tokenizer, --tokenizer-mode, --revision and "
            "--trust-remote-code of vLLM"
        ) from None
    check_tokenizer(tokenizer)
    return tokenizer
