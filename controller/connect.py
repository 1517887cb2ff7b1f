"""Connecting to a server: the engine behind a URL."""

from __future__ import annotations

from typing import Any

from .engines.openai.client import OpenAIClient
from .engines.openai.completions import CompletionsBackend
from .engines.openai.engine import RemoteEngine


def connect(
    base_url: str,
    model: str | None = None,
    tokenizer: Any = None,
    api_key: str | None = None,
    *,
    timeout: float = 120.0,
) -> RemoteEngine:
    """An engine on the completions endpoint of a server such as vLLM's, at `http://host:port/v1`.

    Args:
        model: the server's name for it; None takes the only one.
        tokenizer: of the served model: an object, a folder or a name. None tries the model's name, then the path that
            the server reports.
        api_key: None takes TERSELY_API_KEY or OPENAI_API_KEY.
        timeout: seconds that the server may be silent.

    Raises:
        OptionError, ModelError, CapabilityError: the server, the model or the tokenizer is not as it should be.
    """
    return RemoteEngine(CompletionsBackend(OpenAIClient(base_url, api_key, timeout), model, tokenizer))
