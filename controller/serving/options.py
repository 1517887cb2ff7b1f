"""The options of `tersely serve`, as annotated types."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[str, typer.Option("--model", metavar="NAME", help="An embedded model, a folder or a hub name.")]
Name = Annotated[
    str | None, typer.Option("--name", metavar="NAME", help="What clients call the model; by default its own name.")
]
Host = Annotated[str, typer.Option("--host", help="Address to listen on; the default serves this machine alone.")]
Port = Annotated[int, typer.Option("--port", min=0, max=65535, help="Port; 0 takes any that is free.")]
ApiKey = Annotated[
    str | None,
    typer.Option(
        "--api-key", envvar="TERSELY_API_KEY", show_envvar=True, show_default=False, help="Key that clients must send."
    ),
]
Effort = Annotated[str, typer.Option("--effort", metavar="LEVEL", help="Where a request names none.")]
Preset = Annotated[str, typer.Option("--preset", metavar="NAME", help="Where a request names none.")]
Policies = Annotated[
    list[str] | None, typer.Option("--policy", metavar="NAME", help="In place of the preset; repeat for several.")
]
Config = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="A file of `tersely tune`, in place of effort, preset and policies."),
]
Budgets = Annotated[
    list[str] | None,
    typer.Option("--budget", metavar="EFFORT=TOKENS", help="Thinking tokens of an effort; repeat for several."),
]
AnswerReserve = Annotated[
    int | None, typer.Option("--answer-reserve", min=1, help="Output tokens kept for the answer; by default 64.")
]
Probes = Annotated[
    str | None,
    typer.Option("--probes", metavar="DIR", help="A folder of `tersely calibrate`, in place of the released."),
]
Verifier = Annotated[
    str | None, typer.Option("--verifier", metavar="NAME", help="A model that policies ask for verdicts.")
]
Helper = Annotated[
    str | None, typer.Option("--helper", metavar="NAME", help="A larger model that policies delegate to.")
]
Markers = Annotated[
    str | None,
    typer.Option("--markers", metavar="OPEN,CLOSE", help="How the model opens and closes its thinking; else found."),
]
ThinkPrompt = Annotated[
    bool, typer.Option("--think-prompt", help="Make a model without markers think between <think> and </think>.")
]
NoThinking = Annotated[bool, typer.Option("--no-thinking", help="Serve a model that does not think, as it is.")]
ShadowShare = Annotated[
    float,
    typer.Option("--shadow-share", min=0.0, max=1.0, help="Share of requests answered untouched, for the metrics."),
]
Batch = Annotated[int, typer.Option("--max-batch", min=1, help="Rows decoded at once.")]
Waiting = Annotated[int, typer.Option("--max-waiting", min=1, help="Requests that may wait their turn.")]
MaxTokens = Annotated[int, typer.Option("--max-tokens", min=2, help="Most output tokens of a reply.")]
MaxPrompt = Annotated[
    int | None,
    typer.Option("--max-prompt-tokens", min=1, help="Longest prompt; by default as long as the model holds."),
]
MaxBody = Annotated[int, typer.Option("--max-body", min=1024, metavar="BYTES", help="Largest body of a request.")]
Timeout = Annotated[float, typer.Option("--timeout", min=0.1, metavar="SECONDS", help="How long a request may take.")]
Grouped = Annotated[
    bool, typer.Option("--grouped-attention", help="On a CPU: faster, and sums in another order than transformers.")
]
Drain = Annotated[
    float, typer.Option("--drain", min=0.0, metavar="SECONDS", help="How long what runs may go on after Ctrl-C.")
]
