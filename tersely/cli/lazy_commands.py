"""Commands that live elsewhere in the package, mounted so that naming them in the help costs nothing."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from ..errors import OptionError, TerselyError, unknown
from ..training.methods import METHODS

train_app = typer.Typer(help="Train a model to think where that helps, or the embedded models from nothing.")


class SizeName(StrEnum):
    """The embedded models by size; the agent is the one that calls tools."""

    small = "small"
    large = "large"
    agent = "agent"


def agents(context: typer.Context) -> None:
    """Compare ways for an agent to think and to use tools; `tersely agents --help` tells the options."""
    from ..evaluation.agents.cli import agents as command

    _hand_over("agents", command, context)


def bench(context: typer.Context) -> None:
    """Compare presets with the uncontrolled model on paired tasks; `tersely bench --help` tells the options."""
    from ..evaluation.bench.cli import bench as command

    _hand_over("bench", command, context)


def calibrate(context: typer.Context) -> None:
    """Learn probes from collected data and certify them; `tersely calibrate --help` tells the options."""
    from ..probes.calibrate.cli import calibrate as command

    _hand_over("calibrate", command, context)


def collect(context: typer.Context) -> None:
    """Sample rollouts and keep what probes learn from; `tersely collect --help` tells the options."""
    from ..evaluation.collect import collect as command

    _hand_over("collect", command, context)


def quantize(context: typer.Context) -> None:
    """Write a checkpoint in low-bit weights for CPUs; `tersely quantize --help` tells the options."""
    from .quantize import quantize as command

    _hand_over("quantize", command, context)


def report(context: typer.Context) -> None:
    """Make tables, pictures and a page of benchmark results; `tersely report --help` tells the options."""
    from ..evaluation.report.cli import report as command

    _hand_over("report", command, context)


def roofline(context: typer.Context) -> None:
    """Tell what bounds a model on a device, and tokens/s at most; `tersely roofline --help` tells the options."""
    from ..evaluation.economics.cli import roofline as command

    _hand_over("roofline", command, context)


def serve(context: typer.Context) -> None:
    """Serve a model to clients of the OpenAI API: `tersely serve MODEL [--engine vllm]`; --help tells the options."""
    engine, arguments = _engine(list(context.args))
    if arguments and not arguments[0].startswith("-"):
        arguments.insert(0, "--model")
    context.args = arguments
    if engine == "vllm":
        from ..controller.serving.vllm_cli import PASSED_ON
        from ..controller.serving.vllm_cli import serve as on_vllm

        _hand_over("serve", on_vllm, context, **PASSED_ON)
        return
    from ..controller.serving.cli import serve as command

    _hand_over("serve", command, context)


def _engine(arguments: list[str]) -> tuple[str, list[str]]:
    """The engine that arguments name, and the rest of them."""
    from .loading import ENGINES

    engine, rest = ENGINES[0], []
    given = iter(arguments)
    for argument in given:
        name, equals, value = argument.partition("=")
        if name == "--engine":
            engine = value if equals else next(given, "")
        else:
            rest.append(argument)
    if engine not in ENGINES:
        raise unknown("engine", engine, ENGINES)
    return engine, rest


def steer(context: typer.Context) -> None:
    """Find a direction that shortens the thinking of a model; `tersely steer --help` tells the options."""
    from ..evaluation.research.steering.cli import steer as command

    _hand_over("steer", command, context)


def tune(context: typer.Context) -> None:
    """Search for the cheapest way of answering that loses nothing; `tersely tune --help` tells the options."""
    from ..evaluation.tune.cli import tune as command

    _hand_over("tune", command, context)


def view(context: typer.Context) -> None:
    """Show a trace file as one HTML page; `tersely view --help` tells the options."""
    from ..evaluation.view.cli import view as command

    _hand_over("view", command, context)


def _hand_over(name: str, command: Callable[..., None], context: typer.Context, **settings: bool) -> None:
    """Run a command on the arguments that were left alone for it."""
    inner = typer.Typer(add_completion=False)
    inner.command(name=name, context_settings=settings)(command)
    parsed = typer.main.get_command(inner)
    with parsed.make_context(f"tersely {name}", list(context.args)) as inner_context:
        parsed.invoke(inner_context)


def _mount(name: str, what: str) -> None:
    """Make a command of a training method."""

    def command(
        config: Annotated[
            Path, typer.Option("--config", metavar="FILE", help="The recipe, a YAML file; see docs/TRAINING.md.")
        ],
        changes: Annotated[
            list[str] | None,
            typer.Option(
                "--set", metavar="KEY=VALUE", help="In place of what it says, as in optimiser.steps=20; may repeat."
            ),
        ] = None,
        dry_run: Annotated[
            bool, typer.Option("--dry-run", help="Check data, template, markers, lengths and memory, and stop.")
        ] = False,
        resume: Annotated[bool, typer.Option("--resume", help="Go on from the last good checkpoint in `out`.")] = False,
    ) -> None:
        from ..training.run import train

        train(name, config, changes=changes or (), dry_run=dry_run, resume=resume)

    train_app.command(name, help=what)(command)


for _name, _what in METHODS.items():
    _mount(_name, _what)


@train_app.command()
def blend(
    model: Annotated[Path, typer.Argument(help="The folder `model` of `tersely train mahdpo`.")],
    out: Annotated[Path, typer.Argument(help="Folder to write.")],
    weight: Annotated[
        list[str], typer.Option("--weight", metavar="NAME=WEIGHT", help="How much an objective counts; may repeat.")
    ],
) -> None:
    """Mix the heads of a model by weights of their objectives, into an ordinary model (MAH-DPO)."""
    from ..training.research.heads import blend_into

    weights: dict[str, float] = {}
    for given in weight:
        name, _, value = given.partition("=")
        try:
            weights[name] = float(value)
        except ValueError:
            raise OptionError(f"--weight is {given!r}; accepted: NAME=WEIGHT, as in accuracy=1") from None
    blend_into(model, out, weights)
    print(f"saved to {out}")


@train_app.command()
def tiny(
    size: Annotated[SizeName, typer.Option("--size", help="Which of the models.")],
    out: Annotated[Path, typer.Option("--out", help="Folder to write; a checkpoint in it is resumed.")],
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the data and the weights.")] = 0,
    tokens: Annotated[
        int | None, typer.Option("--tokens", min=1, help="Training tokens; by default those of the size.")
    ] = None,
    wall_minutes: Annotated[
        float, typer.Option("--wall-minutes", min=0.0, help="Stop with a checkpoint after this long.")
    ] = 240.0,
) -> None:
    """Train an embedded model from scratch on the embedded tasks."""
    if out.exists() and not out.is_dir():
        raise OptionError(f"--out {str(out)!r} is a file; accepted: a folder, new or holding a checkpoint")
    from ..training.toy_models.train import train

    try:
        folder = train(size.value, out, seed, tokens, wall_minutes)
    except TimeoutError as error:
        raise TerselyError(str(error)) from error
    print(f"saved to {folder}")
