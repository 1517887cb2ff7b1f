"""tersely: the answer a reasoning model would have given, with less thinking.

Importing this package takes milliseconds: a name is loaded from its module, and torch with it, at first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .controller.api import custom_generate, generate, sample
    from .controller.budgets import Budget
    from .controller.controller import Controller
    from .controller.engines.openai.completions import connect
    from .controller.engines.transformers.engine import load_engine
    from .controller.integrations.langchain import middleware
    from .controller.integrations.langchain.chat_model import ChatTersely
    from .controller.options import GenerationOptions, load_config
    from .controller.policies.base import (
        AskHelper,
        AskVerifier,
        Close,
        Delegate,
        Inject,
        Note,
        Policy,
        PolicyView,
        ReviewDraft,
        Trial,
        Wait,
    )
    from .controller.text.markers import Markers
    from .controller.trace import Decision, GenerationResult, Usage
    from .controller.types import Capability
    from .controller.vllm.llm import LLM
    from .errors import TerselyError

__version__ = "0.2.0"

_NAMES = {
    "tersely.controller.api": "custom_generate generate sample",
    "tersely.controller.budgets": "Budget",
    "tersely.controller.controller": "Controller",
    "tersely.controller.engines.openai.completions": "connect",
    "tersely.controller.engines.transformers.engine": "load_engine",
    "tersely.controller.integrations.langchain": "middleware",
    "tersely.controller.integrations.langchain.chat_model": "ChatTersely",
    "tersely.controller.options": "GenerationOptions load_config",
    "tersely.controller.policies.base": (
        "AskHelper AskVerifier Close Delegate Inject Note Policy PolicyView ReviewDraft Trial Wait"
    ),
    "tersely.controller.text.markers": "Markers",
    "tersely.controller.trace": "Decision GenerationResult Usage",
    "tersely.controller.types": "Capability",
    "tersely.controller.vllm.llm": "LLM",
    "tersely.errors": "TerselyError",
}
_HOMES = {name: module for module, names in _NAMES.items() for name in names.split()}
_EXTRAS = {"LLM": "vllm", "ChatTersely": "langchain", "middleware": "langchain"}

__all__ = [
    "LLM",
    "AskHelper",
    "AskVerifier",
    "Budget",
    "Capability",
    "ChatTersely",
    "Close",
    "Controller",
    "Decision",
    "Delegate",
    "GenerationOptions",
    "GenerationResult",
    "Inject",
    "Markers",
    "Note",
    "Policy",
    "PolicyView",
    "ReviewDraft",
    "TerselyError",
    "Trial",
    "Usage",
    "Wait",
    "__version__",
    "connect",
    "custom_generate",
    "generate",
    "load_config",
    "load_engine",
    "middleware",
    "sample",
]


def __getattr__(name: str) -> object:
    """Load a public name from its module, once."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; public names: {', '.join(__all__)}")
    try:
        module = import_module(_HOMES[name])
        value: object = import_module(f"{_HOMES[name]}.{name}") if name == "middleware" else getattr(module, name)
    except ModuleNotFoundError as error:
        extra = _EXTRAS.get(name)
        if extra is None or error.name is None or error.name.startswith("tersely"):
            raise
        raise ImportError(
            f"tersely.{name} needs {error.name}, which is not installed; pip install 'tersely[{extra}]'"
        ) from None
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names, and what is already loaded."""
    return sorted({*globals(), *__all__})
