"""The options that commands share, with texts of `GenerationOptions`, and the model that they name, loaded quietly."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..controller import types
from ..controller.engines import EngineWrapper
from ..controller.options import flag, option_field
from ..controller.text.markers import resolve_markers
from ..controller.types import Completion, Request, SamplingParams, TokenSink
from ..errors import OptionError, check_known

if TYPE_CHECKING:
    from rich.status import Status

    from ..controller.session import Session

ENGINES = ("transformers", "vllm", "openai")
DEFAULT_MODEL = "tersely-tiny-small"
_REPEAT = "A policy by name or as file.py:Class, instead of the preset; repeat for several, in order of precedence."


def _option(name: str, **settings: Any) -> Any:
    """The command-line option of a field of `GenerationOptions`."""
    return typer.Option(name, help=option_field(name.removeprefix("--").replace("-", "_")).description, **settings)


Model = Annotated[str | None, flag("An embedded model, a folder, or a name on the Hugging Face hub.", metavar="NAME")]
Markers = Annotated[
    str | None, flag("How the model opens and closes its thinking; found by default.", metavar="OPEN,CLOSE")
]
ThinkPrompt = Annotated[
    bool, flag("Make a model without markers think between <think> and </think>.", "--think-prompt")
]
Json = Annotated[bool, flag("Print JSON and nothing else.", "--json")]
Effort = Annotated[str, _option("--effort", metavar="LEVEL")]
Preset = Annotated[str, _option("--preset", metavar="NAME")]
StrategyName = Annotated[str, _option("--strategy", metavar="NAME")]
Config = Annotated[Path | None, flag("A file of `tersely tune` with effort, policies and strategy.", metavar="FILE")]
Probes = Annotated[str | None, _option("--probes", metavar="DIR")]
Helper = Annotated[str | None, flag("A larger model that policies delegate to.", metavar="NAME")]
Verifier = Annotated[
    str | None,
    flag("A model, or a server of one, that answers policies' questions where rules cannot.", metavar="NAME|URL"),
]
Policies = Annotated[list[str] | None, flag(_REPEAT, metavar="NAME")]
Modifiers = Annotated[
    list[str] | None, flag("A change of the forward pass, such as steer; may repeat.", metavar="NAME")
]
Engine = Annotated[str, flag("What runs the model: transformers, vllm, or openai (a server).", metavar="NAME")]
BaseUrl = Annotated[str | None, flag("URL of an OpenAI-compatible server, for --engine openai.", metavar="URL")]
Tokenizer = Annotated[str | None, flag("Tokenizer of the served model: a folder or name.", metavar="NAME")]
Seed = Annotated[int, flag("Seed of the sampling.", min=0)]
MaxNewTokens = Annotated[int | None, _option("--max-new-tokens", min=1)]
ThinkingBudget = Annotated[int | None, _option("--thinking-budget", min=1)]
AnswerReserve = Annotated[int | None, _option("--answer-reserve", min=1)]
Temperature = Annotated[float | None, flag("Sampling temperature, 0 is greedy; by default the model's.", min=0.0)]
Shadow = Annotated[bool, _option("--shadow")]
Compare = Annotated[
    bool | None,
    flag(
        "Run the prompt uncontrolled too (preset off, effort normal, same seed); on unless --json or --quiet.",
        "--compare/--no-compare",
        show_default=False,
    ),
]
Trace = Annotated[
    Path | None, flag("Append the record of this run to a trace file, for `tersely view`.", metavar="FILE")
]
Quiet = Annotated[bool, flag("Print the answer only.", "--quiet", "-q")]


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Which model to run on which engine, and how it thinks; raises OptionError for what does not go together."""

    model: str | None
    engine: str
    markers: str | None
    think_prompt: bool
    base_url: str | None
    tokenizer: str | None

    def __post_init__(self) -> None:
        check_known("engine", self.engine, ENGINES)
        if (self.engine == "openai") != (self.base_url is not None):
            raise OptionError("--engine openai and --base-url go together; give both or neither")
        if self.tokenizer is not None and self.engine != "openai":
            raise OptionError("--tokenizer goes with --engine openai; leave it out")
        if self.model is not None and not self.model.strip():
            raise OptionError("--model is empty; accepted: an embedded model, a folder, or a name on the hub")
        if self.markers is not None and self.think_prompt:
            raise OptionError("--markers and --think-prompt exclude each other; accepted: one of them")
        resolve_markers(self.markers)  # raises MarkerError


def load(wanted: ModelSource) -> types.Engine:
    """Load the model; on a terminal a spinner on stderr says so."""
    if wanted.engine == "openai":
        from ..controller.engines.openai.completions import connect

        return connect(wanted.base_url or "", wanted.model, wanted.tokenizer)
    model = wanted.model or DEFAULT_MODEL
    with spinner(f"loading {model}"):
        if wanted.engine == "vllm":
            from ..controller.vllm.engine import load_vllm

            quiet = {"enforce_eager": True, "use_tqdm_on_load": False, "disable_log_stats": True}
            # Standard output is for answers.
            with redirect_stdout(sys.stderr), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return load_vllm(model, options=quiet)
        from transformers.utils import logging

        from ..controller.engines.transformers.engine import load_engine

        if os.environ.get("HF_HUB_DISABLE_PROGRESS_BARS") == "1":
            logging.disable_progress_bar()  # transformers may have been imported before `silence_libraries`
        return load_engine(model)


def start_session(
    engine: types.Engine, wanted: ModelSource, verifier: str | None = None, helper: str | None = None
) -> Session:
    """A session on a loaded model; raises MarkerError if its thinking markers are unknown."""
    from ..controller.api import open_session

    return open_session(engine, None, wanted.markers, wanted.think_prompt, verifier, helper)


def silence_libraries() -> None:
    """Silence the libraries' messages about loading, before they are imported; what a user has set stays."""
    for name, value in (
        ("TRANSFORMERS_VERBOSITY", "error"),
        ("HF_HUB_DISABLE_PROGRESS_BARS", "1"),
        ("TOKENIZERS_PARALLELISM", "false"),
    ):
        os.environ.setdefault(name, value)
    warnings.filterwarnings("ignore", module=r"(transformers|torch|huggingface_hub)(\.|$)")


def spinner(text: str) -> Status:
    """Show on stderr that something takes a while, if it is a terminal."""
    from rich.console import Console

    return Console(stderr=True).status(f"{text} ...")


class Interruptible(EngineWrapper):
    """An engine that returns what it has so far on Ctrl-C, cut by "length", and is then `interrupted`."""

    def __init__(self, engine: types.Engine) -> None:
        super().__init__(engine)
        self.interrupted = False

    def generate(
        self, requests: Sequence[Request], sampling: SamplingParams, sink: TokenSink | None = None
    ) -> list[Completion]:
        made: list[list[tuple[int, bool]]] = [[] for _ in requests]

        def record(row: int, tokens: Sequence[int], forced: bool) -> None:
            if tokens:
                made[row].extend((token, forced) for token in tokens)
            elif made[row]:
                made[row].pop()
            if sink is not None:
                sink(row, tokens, forced)

        try:
            return self.engine.generate(requests, sampling, record)
        except KeyboardInterrupt:
            self.interrupted = True
            return [Completion(tuple(t for t, _ in row), tuple(f for _, f in row), "length") for row in made]
