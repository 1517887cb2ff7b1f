"""The options that commands share, as annotated types; their texts come from `GenerationOptions` where it has them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..controller.options import option_field

DEFAULT_MODEL = "tersely-tiny-small"
_REPEAT = "A policy by name or as file.py:Class, instead of the preset; repeat for several, in order of precedence."


def _option(flag: str, **settings: Any) -> Any:
    """The command-line option of a field of `GenerationOptions`."""
    return typer.Option(flag, help=option_field(flag.removeprefix("--").replace("-", "_")).description, **settings)


Model = Annotated[
    str | None,
    typer.Option("--model", metavar="NAME", help="An embedded model, a folder, or a name on the Hugging Face hub."),
]
Markers = Annotated[
    str | None,
    typer.Option(
        "--markers", metavar="OPEN,CLOSE", help="How the model opens and closes its thinking; found by default."
    ),
]
ThinkPrompt = Annotated[
    bool, typer.Option("--think-prompt", help="Make a model without markers think between <think> and </think>.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]
Effort = Annotated[str, _option("--effort", metavar="LEVEL")]
Preset = Annotated[str, _option("--preset", metavar="NAME")]
StrategyName = Annotated[str, _option("--strategy", metavar="NAME")]
Config = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="A file of `tersely tune` with effort, policies and strategy."),
]
Probes = Annotated[str | None, _option("--probes", metavar="DIR")]
Helper = Annotated[
    str | None, typer.Option("--helper", metavar="NAME", help="A larger model that policies delegate to.")
]
Verifier = Annotated[
    str | None,
    typer.Option(
        "--verifier",
        metavar="NAME|URL",
        help="A model, or a server of one, that answers policies' questions where rules cannot.",
    ),
]
Policies = Annotated[list[str] | None, typer.Option("--policy", metavar="NAME", help=_REPEAT)]
Modifiers = Annotated[
    list[str] | None,
    typer.Option("--modifier", metavar="NAME", help="A change of the forward pass, such as steer; may repeat."),
]
Engine = Annotated[
    str,
    typer.Option("--engine", metavar="NAME", help="What runs the model: transformers, vllm, or openai (a server)."),
]
BaseUrl = Annotated[
    str | None,
    typer.Option("--base-url", metavar="URL", help="URL of an OpenAI-compatible server, for --engine openai."),
]
Tokenizer = Annotated[
    str | None,
    typer.Option("--tokenizer", metavar="NAME", help="Tokenizer of the served model: a folder or name."),
]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed of the sampling.")]
MaxNewTokens = Annotated[int | None, _option("--max-new-tokens", min=1)]
ThinkingBudget = Annotated[int | None, _option("--thinking-budget", min=1)]
AnswerReserve = Annotated[int | None, _option("--answer-reserve", min=1)]
Temperature = Annotated[
    float | None,
    typer.Option("--temperature", min=0.0, help="Sampling temperature, 0 is greedy; by default the model's."),
]
Shadow = Annotated[bool, _option("--shadow")]
Compare = Annotated[
    bool | None,
    typer.Option(
        "--compare/--no-compare",
        help="Run the prompt uncontrolled too (preset off, effort normal, same seed); on unless --json or --quiet.",
        show_default=False,
    ),
]
Trace = Annotated[
    Path | None,
    typer.Option("--trace", metavar="FILE", help="Append the record of this run to a trace file, for `tersely view`."),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print the answer only.")]
