"""The command `tersely agents`."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from ...controller.options import flag
from ...errors import OptionError
from ...io import CheckpointLog, announce_resume, begins_with_keys, check_replaceable, write
from .. import cli_utils as cli


@dataclass(frozen=True, slots=True)
class AgentOptions:
    """The options of `tersely agents`."""

    model: Annotated[str, typer.Argument(metavar="MODEL", help="Model name or folder; with --url, its served name.")]
    url: Annotated[str | None, flag("Use an OpenAI-compatible endpoint.")] = None
    arms: Annotated[str, flag("Arms to compare, the baseline first; MODE or MODE+PRESET.")] = "always-think,agentic"
    kinds: Annotated[str | None, flag("Kinds of tasks, comma-separated; by default all.")] = None
    split: Annotated[str, flag("Split of the tasks: fit, calibrate or test.")] = "test"
    limit: Annotated[int, flag("Number of tasks.", min=1)] = 100
    seed: cli.Seed = 0
    router: Annotated[Path | None, flag("Folder of a router; by default the pretrained one.")] = None
    router_out: Annotated[Path | None, flag("Folder for a router trained on these episodes.")] = None
    preset: Annotated[str, flag("Preset of arms that name none; not with --url.")] = "off"
    max_new_tokens: cli.MaxNewTokens = 2048
    steps: Annotated[int, flag("Maximum graph steps per episode.", min=2)] = 60
    price: cli.Price = None
    system: Annotated[str | None, flag("System prompt; '' for none.")] = None
    out: Annotated[Path | None, flag("JSON file for the report; an interrupted run resumes.")] = None
    keep: Annotated[Path | None, flag("JSONL file for efficient trajectories, which TRL's SFT trainer reads.")] = None
    keep_isr: Annotated[float, flag("These have a higher ISR; the default is WebLeaper's.")] = 0.3
    keep_ise: Annotated[float, flag("These have a higher ISE; the default is WebLeaper's.")] = 0.1
    as_json: cli.Json = False


@cli.takes(AgentOptions)
def agents(options: AgentOptions) -> None:
    """Compare ways for an agent to think and to use tools: success, tokens per solved task, steps, repeated calls.

    Tasks are generated: arithmetic that needs no tool, look-ups over several pages, sums of looked-up numbers, and
    lists of everything under a root. The model's chat template must support tools.
    """
    from ...probes.artifact import save
    from ..economics.costs import load_prices
    from .episodes import as_text, compare_arms, select_trajectories
    from .run import ROUTED, parse_arm, run_all, select_modes, train_router
    from .tasks import KINDS, draw_tasks, get_system_prompt

    out, seed, router_out = options.out, options.seed, options.router_out
    names = cli.parse_list("--arms", options.arms, str)
    parsed = [parse_arm(name) for name in names]
    routed = any(mode == ROUTED for mode, _ in parsed)
    system = get_system_prompt(options.model) if options.system is None else options.system or None
    kinds = KINDS if options.kinds is None else cli.parse_list("--kinds", options.kinds, str, KINDS)
    if out is not None:
        check_replaceable(out, lambda path: begins_with_keys(path, "arms", "episodes"))
    if options.keep is not None:
        check_replaceable(options.keep, lambda path: begins_with_keys(path, "messages", "isr", "ise"), "--keep")
    price = None if options.price is None else load_prices().get(options.price)
    if router_out is not None:
        select_modes(dict.fromkeys(names, ()))
    if options.url is not None:
        _check_remote([named for _, named in parsed], routed or router_out is not None)
    tasks = draw_tasks(options.split, seed, options.limit, kinds)
    chat, session = _load_model(options)
    route: Callable[..., str] | None = None
    if routed:
        from ...controller.integrations.langchain.routing import ModeRouter

        route = ModeRouter(session, None if options.router is None else str(options.router))
    checkpoints = CheckpointLog(
        None if out is None else out.with_name(f"{out.name}.journal"),
        cli.identify(options, "out router_out as_json price keep keep_isr keep_ise"),
    )
    resumable = announce_resume(checkpoints.path, lambda: checkpoints.completed)
    with resumable, cli.show_progress(len(names) * options.limit) as advance:
        limit = options.steps
        episodes = run_all(names, tasks, chat, checkpoints, route, advance, system=system, recursion_limit=limit)
    report: dict[str, Any] = {"model": options.model, "split": options.split, "seed": seed}
    report |= compare_arms(episodes, price, seed)
    report["episodes"] = {arm: [asdict(replace(one, messages=())) for one in rows] for arm, rows in episodes.items()}
    if options.keep is not None:
        kept = select_trajectories(episodes, system, options.keep_isr, options.keep_ise)
        write(options.keep, "".join(f"{json.dumps(one)}\n" for one in kept))
        report["kept"] = len(kept)
    if router_out is not None:
        save(train_router(session, tasks, select_modes(episodes)), router_out)
    if out is not None:
        write(out, json.dumps(report))
    checkpoints.remove()
    typer.echo(json.dumps(report) if options.as_json else as_text(report))


def _check_remote(presets: list[str | None], needs_router: bool) -> None:
    if any(preset is not None for preset in presets):
        raise OptionError(
            "an endpoint uses its own preset; leave out --url, or +PRESET in --arms", code="preset_needs_local"
        )
    if needs_router:
        raise OptionError(
            "a router reads hidden states, which an endpoint does not return; leave out --url or the router",
            code="router_needs_local",
        )


def _load_model(options: AgentOptions) -> tuple[Any, Any]:
    model, length, seed = options.model, options.max_new_tokens, options.seed
    if options.url is not None:
        from langchain_openai import ChatOpenAI

        settings: Any = {"model": model, "base_url": options.url, "max_tokens": length, "seed": seed}
        return ChatOpenAI(**settings, api_key=lambda: os.environ.get("OPENAI_API_KEY", "none")), None
    from ...controller.integrations import shared_engine
    from ...controller.integrations.langchain.chat_model import ChatTersely
    from ...controller.session import Session

    session = Session(shared_engine(model))
    return ChatTersely(model=session, preset=options.preset, max_tokens=length, seed=seed), session
