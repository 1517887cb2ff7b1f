"""`tersely agents`: what ways of thinking and of using tools cost an agent, and what they bring."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from ...errors import OptionError
from ...io import check_writable, write
from ..cli_parsing import parse_names, split_list

DEFAULT_ARMS = "always-think,agentic"


def agents(
    model: Annotated[str, typer.Option("--model", help="Embedded model, folder or hub name.")],
    url: Annotated[str | None, typer.Option("--url", help="Ask an OpenAI-compatible endpoint for it.")] = None,
    arms: Annotated[
        str, typer.Option("--arms", help="Ways to go about it, the baseline first; WAY+PRESET too.")
    ] = DEFAULT_ARMS,
    kinds: Annotated[str | None, typer.Option("--kinds", help="Kinds of tasks, by commas; by default all.")] = None,
    split: Annotated[str, typer.Option("--split", help="Split of the tasks: fit, calibrate or test.")] = "test",
    limit: Annotated[int, typer.Option("--limit", min=1, help="Tasks.")] = 100,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the tasks and of sampling.")] = 0,
    router: Annotated[
        Path | None, typer.Option("--router", help="Folder of a router; by default the released one.")
    ] = None,
    router_out: Annotated[
        Path | None, typer.Option("--router-out", help="Learn a router from these episodes into this folder.")
    ] = None,
    preset: Annotated[str, typer.Option("--preset", help="Of arms that name none; not with --url.")] = "off",
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=2, help="Most tokens of one step.")] = 2048,
    steps: Annotated[int, typer.Option("--steps", min=2, help="Most steps of an episode's graph.")] = 60,
    price: Annotated[str | None, typer.Option("--price", help="Price of the tokens: a name in the table.")] = None,
    system: Annotated[str | None, typer.Option("--system", help="System prompt; '' for none.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Write the report; a killed run goes on.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Play tasks with tools in several ways, paired: success, tokens for each solved task, steps, duplicate calls.

    Tasks are made up: arithmetic that needs no tool, look-ups over several pages, sums of what stands there, and
    lists of all that is under a root. The model has to know tools by its chat template.
    """
    from ..economics.prices import load_prices
    from ..progress import show_progress
    from .arms import ROUTED, resolve_mode
    from .result import as_text, compared
    from .run import AgentsPlan, modes_among, open_log, play_all
    from .tasks import KINDS, system_for

    names = split_list("--arms", arms)
    ways = {resolve_mode(name) for name in names}
    routed = any(way == ROUTED for way, _ in ways)
    prompt = system_for(model) if system is None else system or None
    chosen = KINDS if kinds is None else parse_names("--kinds", "kind of task", kinds, KINDS)
    plan = AgentsPlan(model, names, chosen, split, limit, seed, prompt, steps, url)
    if out is not None:
        check_writable(out)
    cost = None if price is None else load_prices().get(price)
    if router_out is not None:
        modes_among(dict.fromkeys(names, ()))
    if url is not None and any(chosen is not None for _, chosen in ways):
        raise OptionError("an endpoint thinks under its own preset; leave out --url, or +PRESET in --arms")
    if url is not None and (routed or router_out is not None):
        raise OptionError(
            "a router reads hidden states, which an endpoint does not show; leave out --url or the router"
        )
    drawn = plan.tasks()
    chat, session = _model(model, url, preset, max_tokens, seed)
    route = _router(session, router) if routed else None
    journal = open_log(plan, out, {"preset": preset, "max_tokens": max_tokens, "router": str(router)})
    with show_progress(len(names) * limit) as advance:
        played = play_all(plan, drawn, chat, journal, route, advance)
    report: dict[str, Any] = {"model": model, "split": split, "seed": seed, **compared(played, cost, seed)}
    report["episodes"] = {arm: [one.record() for one in episodes] for arm, episodes in played.items()}
    if router_out is not None:
        from .learning import train_router

        train_router(session, drawn, modes_among(played)).save(router_out)
    if out is not None:
        write(out, json.dumps(report))
    journal.remove()
    typer.echo(json.dumps(report) if as_json else as_text(report))


def _model(model: str, url: str | None, preset: str, max_tokens: int, seed: int) -> tuple[Any, Any]:
    """The chat model, and its session where it is loaded here."""
    if url is not None:
        from langchain_openai import ChatOpenAI

        settings: Any = {"model": model, "base_url": url, "max_tokens": max_tokens, "seed": seed}
        return ChatOpenAI(**settings, api_key=lambda: _key()), None
    from ...controller.integrations.langchain.chat_model import ChatTersely
    from ...controller.integrations.runner import shared_engine
    from ...controller.session import Session

    session = Session(shared_engine(model))
    return ChatTersely(model=session, preset=preset, max_tokens=max_tokens, seed=seed), session


def _key() -> str:
    import os

    return os.environ.get("OPENAI_API_KEY", "none")


def _router(session: Any, folder: Path | None) -> Callable[..., str]:
    from ...controller.integrations.langchain.routing import ModeRouter

    return ModeRouter(session, None if folder is None else str(folder))
