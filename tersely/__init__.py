"""tersely: the answer a reasoning model would have given, with less thinking.

Importing this package costs milliseconds: a name is fetched from its module, and torch with it, at first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .controller.api import custom_generate, generate, sample
    from .controller.budgets import Budget
    from .controller.controller import Controller
    from .controller.engines.openai.completions import connect
    from .controller.integrations.langchain.chat_model import ChatTersely
    from .controller.trace import GenerationResult
    from .controller.tuned_config import load_config
    from .controller.vllm.llm import LLM
    from .errors import TerselyError

__version__ = "0.1.0"

__all__ = [
    "LLM",
    "Budget",
    "ChatTersely",
    "Controller",
    "GenerationResult",
    "TerselyError",
    "__version__",
    "connect",
    "custom_generate",
    "generate",
    "load_config",
    "sample",
]

_HOMES = {
    "LLM": "tersely.controller.vllm.llm",
    "Budget": "tersely.controller.budgets",
    "ChatTersely": "tersely.controller.integrations.langchain.chat_model",
    "Controller": "tersely.controller.controller",
    "GenerationResult": "tersely.controller.trace",
    "TerselyError": "tersely.errors",
    "connect": "tersely.controller.engines.openai.completions",
    "custom_generate": "tersely.controller.api",
    "generate": "tersely.controller.api",
    "load_config": "tersely.controller.tuned_config",
    "sample": "tersely.controller.api",
}

_EXTRAS = {"LLM": "vllm", "ChatTersely": "langchain"}


def __getattr__(name: str) -> object:
    """Fetch a public name from its module, and keep it so that this runs once per name."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; public names: {', '.join(__all__)}")
    try:
        module = import_module(_HOMES[name])
    except ModuleNotFoundError as error:
        extra = _EXTRAS.get(name)
        if extra is None or error.name is None or error.name.startswith("tersely"):
            raise
        raise ImportError(
            f"tersely.{name} needs {error.name}, which is not installed; pip install 'tersely[{extra}]'"
        ) from None
    value: object = getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names beside what is already loaded."""
    return sorted({*globals(), *__all__})
