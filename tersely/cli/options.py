"""The options that commands share, as annotated types: one wording for each, wherever it appears."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

DEFAULT_MODEL = "tersely-tiny-small"
_REPEAT = "A policy by name, which replaces the preset; repeat for several, the first has precedence."

Model = Annotated[
    str | None,
    typer.Option("--model", metavar="NAME", help="An embedded model, a folder, or a name on the Hugging Face hub."),
]
Markers = Annotated[
    str | None,
    typer.Option(
        "--markers", metavar="OPEN,CLOSE", help="How the model opens and closes its thinking; found if not given."
    ),
]
ThinkPrompt = Annotated[
    bool, typer.Option("--think-prompt", help="Make a model without markers think between <think> and </think>.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]
Effort = Annotated[
    str,
    typer.Option("--effort", metavar="LEVEL", help="none, easy, normal, hard, auto, or OpenAI's low, medium, high."),
]
Preset = Annotated[
    str,
    typer.Option(
        "--preset",
        metavar="NAME",
        help="A set of policies, such as off, balanced, certified or fast; README lists them.",
    ),
]
Config = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="A file of `tersely tune`, in place of effort, preset and policies."),
]
Probes = Annotated[
    str | None,
    typer.Option("--probes", metavar="DIR", help="A folder of `tersely calibrate`, in place of the released probes."),
]
Helper = Annotated[
    str | None, typer.Option("--helper", metavar="NAME", help="A larger model that policies delegate steps to.")
]
Verifier = Annotated[
    str | None,
    typer.Option(
        "--verifier", metavar="NAME", help="A model that policies ask for verdicts where rules do not decide."
    ),
]
Policies = Annotated[list[str] | None, typer.Option("--policy", metavar="NAME", help=_REPEAT)]
Engine = Annotated[
    str,
    typer.Option(
        "--engine", metavar="NAME", help="What runs the model: transformers, vllm, or openai (a server's API)."
    ),
]
BaseUrl = Annotated[
    str | None, typer.Option("--base-url", metavar="URL", help="Of a server with OpenAI's API, for --engine openai.")
]
Tokenizer = Annotated[
    str | None,
    typer.Option("--tokenizer", metavar="NAME", help="Of the model that a server serves: a folder or name."),
]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed of the sampling.")]
MaxNewTokens = Annotated[int, typer.Option("--max-new-tokens", min=1, help="Most output tokens, the answer included.")]
AnswerReserve = Annotated[
    int | None,
    typer.Option("--answer-reserve", min=1, help="Output tokens kept for the answer; by default the tier's."),
]
Temperature = Annotated[
    float | None,
    typer.Option("--temperature", min=0.0, help="Sampling temperature, 0 is greedy; by default the model's."),
]
Shadow = Annotated[bool, typer.Option("--shadow", help="Touch nothing; report what would have been done.")]
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
