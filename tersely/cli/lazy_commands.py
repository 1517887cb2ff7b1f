"""Commands that live elsewhere in the package, mounted so that naming them in the help costs nothing."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from ..errors import OptionError, TerselyError, unknown

COMMAND_ENTRY_POINTS = "tersely.commands"
"""Entry-point group of further commands: the name is a dotted path such as `train.blend`, the value a function."""


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
    """Write a checkpoint with low-bit weights for CPUs; see `tersely quantize --help` for the options."""
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
    from ..controller.serving.cli import DEFAULT_MODEL, PASSED_ON, serve_vllm
    from ..controller.serving.cli import serve as command

    engine, context.args = _engine(list(context.args))
    if engine != "vllm":
        _hand_over("serve", command, context)
        return
    if not context.args or context.args[0].startswith("-"):  # or vLLM's first option would be taken for the model
        context.args.insert(0, DEFAULT_MODEL)
    _hand_over("serve", serve_vllm, context, **PASSED_ON)


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
    parsed = _make_command(name, command, settings=settings)
    with parsed.make_context(f"tersely {name}", list(context.args)) as inner_context:
        parsed.invoke(inner_context)


def _make_command(
    name: str, function: Callable[..., None], what: str | None = None, settings: dict[str, bool] | None = None
) -> Any:
    """A click command made from a function with Typer's annotations; `settings` are those of its context."""
    inner = typer.Typer(add_completion=False)
    inner.command(name=name, help=what, context_settings=settings)(function)
    return typer.main.get_command(inner)


def _make_train_command(name: str, what: str) -> Any:
    """The command of a training method."""

    def command(
        config: Annotated[
            Path, typer.Option("--config", metavar="FILE", help="The recipe, a YAML file; see docs/TRAINING.md.")
        ],
        changes: Annotated[
            list[str] | None,
            typer.Option(
                "--set", metavar="KEY=VALUE", help="Override a key, as in optimiser.steps=20; may be repeated."
            ),
        ] = None,
        dry_run: Annotated[
            bool, typer.Option("--dry-run", help="Check data, template, markers, lengths and memory, and stop.")
        ] = False,
        resume: Annotated[bool, typer.Option("--resume", help="Continue from the last good checkpoint.")] = False,
    ) -> None:
        from ..training.run import train

        train(name, config, changes=changes or (), dry_run=dry_run, resume=resume)

    return _make_command(name, command, what)


class TrainGroup(TyperGroup):
    """The commands of `tersely train`: the training methods, and those of entry points, found when they are needed."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Names in the order of the help."""
        from ..training.methods import list_methods

        return [*list_methods(), *_find_commands("train"), *super().list_commands(ctx)]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of this name; None if there is none."""
        from ..training.methods import list_methods

        if (command := super().get_command(ctx, cmd_name)) is not None:
            return command
        if (what := list_methods().get(cmd_name)) is not None:
            return _make_train_command(cmd_name, what)
        point = _find_commands("train").get(cmd_name)
        return None if point is None else _make_command(cmd_name, point.load())


def _find_commands(group: str) -> dict[str, EntryPoint]:
    """The commands that entry points add to a group, by name."""
    from ..training.methods import find_entry_points

    points = find_entry_points(COMMAND_ENTRY_POINTS)
    return {name.removeprefix(f"{group}."): point for name, point in points.items() if name.startswith(f"{group}.")}


train_app = typer.Typer(
    cls=TrainGroup, help="Train a model to think only where that helps, or an embedded model from scratch."
)


@train_app.command()
def tiny(
    size: Annotated[SizeName, typer.Option("--size", help="Which of the models.")],
    out: Annotated[Path, typer.Option("--out", help="Folder to write; resumes from a checkpoint in it.")],
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the data and the weights.")] = 0,
    tokens: Annotated[
        int | None, typer.Option("--tokens", min=1, help="Training tokens; the default depends on the size.")
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
