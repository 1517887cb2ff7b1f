"""Commands that live elsewhere in the package, imported only when they run."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Callable
from functools import partial
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from ..controller.options import flag
from ..errors import OptionError, check_known
from ..io import announce_resume

ENTRY_POINTS = "tersely.commands"
"""Entry-point group of further commands: the name is `steer` or, below a group, `train.blend`; the value a function."""
COMMANDS = {
    "agents": ("evaluation.agents.cli", "Compare ways for an agent to think and to use tools."),
    "bench": ("evaluation.bench.cli", "Compare presets with the uncontrolled model on paired tasks."),
    "calibrate": ("evaluation.calibrate", "Train probes on collected data or logs and certify them."),
    "collect": ("evaluation.collect", "Sample rollouts and store what probes are trained on."),
    "quantize": ("cli.quantize", "Write a checkpoint with low-bit weights for CPUs."),
    "replay": ("evaluation.replay.cli", "Show what policies would have done on recorded outputs of any model."),
    "report": ("evaluation.report.page", "Make tables, pictures and a page of benchmark results."),
    "roofline": ("evaluation.economics.roofline", "Estimate what bounds a model on a device, and its highest speed."),
    "serve": ("controller.serving.cli", "Serve a model to clients of the OpenAI API."),
    "tune": ("evaluation.tune", "Search for the cheapest settings that lose no accuracy."),
    "view": ("evaluation.trace_page", "Show a trace file as one HTML page."),
}
"""The function of the command's name in a module of the package, and its line in the list of commands."""
GROUPS = {
    "Use": ("run", "view", "doctor", "quantize"),
    "Measure": ("bench", "replay", "report", "tasks"),
    "Learn": ("collect", "calibrate", "tune", "train"),
    "Serve": ("serve",),
}
"""The commands under the headings of the help; all others are under `Research`."""
EXAMPLES = {
    "": (
        'tersely run "Kai has 48 shells. Kai finds 31 shells. Count the shells that belong to Kai."',
        "tersely replay logs.jsonl",
        "tersely bench Qwen/Qwen3-4B --tasks questions.jsonl --arms full,balanced",
        "tersely serve Qwen/Qwen3-4B --engine vllm",
    ),
    "run": (
        'tersely run "What is 17 * 23?" --model Qwen/Qwen3-0.6B',
        'tersely run "Compute (48 + 27) - 36." --preset careful --trace trace.jsonl',
        "tersely run - --quiet < question.txt",
    ),
    "bench": (
        "tersely bench --limit 100",
        "tersely bench Qwen/Qwen3-4B --tasks questions.jsonl --arms full,balanced,careful",
    ),
    "replay": ("tersely replay logs.jsonl", "tersely replay logs.jsonl --preset balanced --preset careful"),
    "serve": ("tersely serve Qwen/Qwen3-4B --engine vllm", "tersely serve tersely-tiny-small --port 8000"),
    "collect": ("tersely collect Qwen/Qwen3-4B --tasks questions.jsonl --out data/",),
    "calibrate": ("tersely calibrate data/ --out probes/ --alpha 0.02", "tersely calibrate logs.jsonl --out probes/"),
}
"""Examples at the end of a command's help; "" is the list of commands."""


def format_examples(name: str) -> str | None:
    """The end of a command's help; None if it has no examples."""
    lines = EXAMPLES.get(name)
    return None if lines is None else "\n\n".join(("Examples:", *(f"  $ {line}" for line in lines)))


AnyCommand = TyperCommand | TyperGroup


class _FlagsWithoutType:
    """Shows no type for flags, which take no value."""

    def get_params(self, ctx: Any) -> list[Any]:
        params: list[Any] = super().get_params(ctx)  # type: ignore[misc]  # of the command that this is mixed into
        for param in params:
            if getattr(param, "is_flag", False):
                param.metavar = ""
        return params


class Command(_FlagsWithoutType, TyperCommand):
    """A command with readable help."""


class LazyCommand(TyperCommand):
    """A command that is made from its function when it is parsed."""

    def __init__(self, name: str, summary: str, make: Callable[[list[str]], Any]) -> None:
        """`make` gets the arguments, which it may change, and returns the command."""
        super().__init__(name, help=summary)
        self._make = make

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> typer.Context:
        context: typer.Context = self._make(args).make_context(info_name, args, parent, **extra)
        return context


class RootGroup(_FlagsWithoutType, TyperGroup):
    """The commands of `tersely`: its own, then those of entry points."""

    def list_commands(self, ctx: Any) -> list[str]:
        grouped = [name for names in GROUPS.values() for name in names]
        own = [*grouped, *sorted({*super().list_commands(ctx), *COMMANDS} - {*grouped})]
        return [*own, *(name for name in _find_plugins("") if name not in own)]

    def get_command(self, ctx: Any, cmd_name: str) -> AnyCommand | None:
        """The command of this name, under its heading; None if there is none."""
        command: AnyCommand | None = self._find_command(ctx, cmd_name)
        if command is not None:
            command.rich_help_panel = next((group for group, names in GROUPS.items() if cmd_name in names), "Research")
        return command

    def _find_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name in COMMANDS:
            module, summary = COMMANDS[cmd_name]
            point = EntryPoint(cmd_name, f"tersely.{module}:{cmd_name}", ENTRY_POINTS)
            make = _make_serve if cmd_name == "serve" else partial(_load_command, cmd_name, point)
            return LazyCommand(cmd_name, summary, make)
        return super().get_command(ctx, cmd_name) or _find_plugins("").get(cmd_name)


class TrainGroup(_FlagsWithoutType, TyperGroup):
    """The commands of `tersely train`: the training methods, and those of entry points."""

    def list_commands(self, ctx: Any) -> list[str]:
        return [*self._find_lazy(), *super().list_commands(ctx)]

    def get_command(self, ctx: Any, cmd_name: str) -> AnyCommand | None:
        command: Any = super().get_command(ctx, cmd_name) or self._find_lazy().get(cmd_name)
        return command  # type: ignore[no-any-return]

    def _find_lazy(self) -> dict[str, LazyCommand]:
        from ..training.methods import list_methods

        make = _make_train_command
        methods = {name: LazyCommand(name, text, partial(make, name, text)) for name, text in list_methods().items()}
        return methods | _find_plugins("train.")


def _find_plugins(prefix: str) -> dict[str, LazyCommand]:
    """The commands of entry points whose name is this prefix and one more word."""
    from ..controller.policies import find_entry_points, read_help

    commands = {}
    for dotted, point in find_entry_points(ENTRY_POINTS).items():
        group, dot, name = dotted.rpartition(".")
        if group + dot == prefix:
            commands[name] = LazyCommand(name, read_help(point), partial(_load_command, name, point))
    return commands


def _load_command(name: str, point: EntryPoint, _arguments: list[str]) -> Any:
    return _make_command(name, point.load())


def _make_command(
    name: str, function: Callable[..., None], summary: str | None = None, settings: dict[str, bool] | None = None
) -> Any:
    """A click command made from a function with Typer's annotations; `settings` are those of its context."""
    inner = typer.Typer(add_completion=False)
    epilog = format_examples(name)
    inner.command(name=name, cls=Command, help=summary, context_settings=settings, epilog=epilog)(function)
    return typer.main.get_command(inner)


def _make_serve(arguments: list[str]) -> Any:
    """The command of the engine that the arguments name with --engine, which is removed from them."""
    from ..controller.serving.cli import DEFAULT_MODEL, PASSED_ON, serve, serve_vllm
    from .options import ENGINES

    parser = ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--engine", nargs="?", const="", default=ENGINES[0])
    found, arguments[:] = parser.parse_known_args(arguments)
    check_known("engine", found.engine, ENGINES)
    if found.engine != "vllm":
        return _make_command("serve", serve)
    if not arguments or (arguments[0].startswith("-") and "--help" not in arguments):
        arguments.insert(0, DEFAULT_MODEL)  # or vLLM's first option would be taken for the model
    return _make_command("serve", serve_vllm, settings=PASSED_ON)


def _make_train_command(name: str, summary: str, _arguments: list[str]) -> Any:
    def command(
        config: Annotated[Path, flag("The recipe, a YAML file; see docs/TRAINING.md.", metavar="FILE")],
        changes: Annotated[
            list[str] | None,
            flag("Override a key, as in optimizer.steps=20; may be repeated.", "--set", metavar="KEY=VALUE"),
        ] = None,
        dry_run: Annotated[
            bool, flag("Check data, template, markers, lengths and memory, and stop.", "--dry-run")
        ] = False,
        resume: Annotated[bool, flag("Continue from the last good checkpoint.", "--resume")] = False,
    ) -> None:
        from ..training.run import train

        train(name, config, changes=changes or (), dry_run=dry_run, resume=resume)

    return _make_command(name, command, summary)


train_app = typer.Typer(
    cls=TrainGroup, help="Train a model to think only where that helps, or an embedded model from scratch."
)


@train_app.command(cls=Command)
def tiny(
    size: Annotated[str, flag("Which of the models: small, large, or agent, which calls tools.")],
    out: Annotated[Path, flag("Folder to write; resumes from a checkpoint in it.")],
    seed: Annotated[int, flag("Seed of the data and the weights.", min=0)] = 0,
    tokens: Annotated[int | None, flag("Training tokens; the default depends on the size.", min=1)] = None,
    wall_minutes: Annotated[float, flag("Stop with a checkpoint after this long.", min=0.0)] = 240.0,
) -> None:
    """Train an embedded model from scratch on the embedded tasks."""
    if out.exists() and not out.is_dir():
        raise OptionError(f"--out {str(out)!r} is a file; accepted: a folder, new or holding a checkpoint")
    from ..training.toy_models.train import train

    with announce_resume(out, (out / "checkpoint.pt").exists):
        print(f"saved to {train(size, out, seed, tokens, wall_minutes)}")
