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
    """An engine for the completions endpoint of a server such as vLLM's, at `http://host:port/v1`.

    model: the server's name for it, None for the only one. tokenizer: of the served model: itself, or a folder or name
    as of a model; None tries the model's name, and where the server says it has it from. api_key: None takes
    TERSELY_API_KEY or OPENAI_API_KEY. timeout: seconds that the server may be silent for.
    Raises OptionError, ModelError and CapabilityError.
    """
    return RemoteEngine(CompletionsBackend(OpenAIClient(base_url, api_key, timeout), model, tokenizer))
