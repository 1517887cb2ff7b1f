"""tersely: the answer a reasoning model would have given, with less thinking.

Importing this package takes milliseconds: a name is loaded from its module, and torch with it, at first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .controller.api import custom_generate as custom_generate
    from .controller.api import generate as generate
    from .controller.api import sample as sample
    from .controller.budgets import Budget as Budget
    from .controller.controller import Controller as Controller
    from .controller.engines.openai.completions import connect as connect
    from .controller.engines.transformers.engine import load_engine as load_engine
    from .controller.integrations.langchain import middleware as middleware
    from .controller.integrations.langchain.chat_model import ChatTersely as ChatTersely
    from .controller.options import GenerationOptions as GenerationOptions
    from .controller.options import load_config as load_config
    from .controller.policies.base import AskHelper as AskHelper
    from .controller.policies.base import AskVerifier as AskVerifier
    from .controller.policies.base import Close as Close
    from .controller.policies.base import Delegate as Delegate
    from .controller.policies.base import Inject as Inject
    from .controller.policies.base import Note as Note
    from .controller.policies.base import Policy as Policy
    from .controller.policies.base import PolicyView as PolicyView
    from .controller.policies.base import ReviewDraft as ReviewDraft
    from .controller.policies.base import Trial as Trial
    from .controller.policies.base import TrialPrompt as TrialPrompt
    from .controller.policies.base import Wait as Wait
    from .controller.text.markers import Markers as Markers
    from .controller.trace import Decision as Decision
    from .controller.trace import GenerationResult as GenerationResult
    from .controller.trace import Usage as Usage
    from .controller.types import Capability as Capability
    from .controller.verification import AnswersEqual as AnswersEqual
    from .controller.verification import AnswerStated as AnswerStated
    from .controller.verification import ReviewCriterion as ReviewCriterion
    from .controller.vllm.llm import LLM as LLM
    from .errors import TerselyError as TerselyError

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
        "AskHelper AskVerifier Close Delegate Inject Note Policy PolicyView ReviewDraft Trial TrialPrompt Wait"
    ),
    "tersely.controller.text.markers": "Markers",
    "tersely.controller.trace": "Decision GenerationResult Usage",
    "tersely.controller.types": "Capability",
    "tersely.controller.verification": "AnswersEqual AnswerStated ReviewCriterion",
    "tersely.controller.vllm.llm": "LLM",
    "tersely.errors": "TerselyError",
}
_HOMES = {name: module for module, names in _NAMES.items() for name in names.split()}
_EXTRAS = {"LLM": "vllm", "ChatTersely": "langchain", "middleware": "langchain"}

__all__ = [*_HOMES, "__version__"]


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
