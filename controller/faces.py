"""The public faces: `generate` for a model and prompts, `custom_generate` for `model.generate` and pipelines."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, cast

from ..errors import CapabilityError, OptionError
from .budgets import canonical_effort, fit_budget, tier_by_length
from .core import Controller
from .engines.base import Engine, Sampling, Watcher
from .markers import Markers, choose_markers
from .policies import make_policies
from .policies.base import Policy
from .prompts import Prompt
from .session import DEFAULT_MAX_NEW_TOKENS, Options, Session
from .stream import EventSink
from .text import codec_for


def generate(
    model: Any,
    tokenizer: Any = None,
    prompts: Prompt | Sequence[Prompt] = "",
    *,
    effort: str = "normal",
    preset: str | None = "balanced",
    policies: Sequence[Policy | str] | None = None,
    max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS,
    answer_reserve: int | None = None,
    strategy: str = "tiers",
    temperature: float | None = None,
    top_p: float | None = None,
    top_k: int | None = None,
    seed: int | None = None,
    markers: Markers | None = None,
    think_prompt: bool = False,
    shadow: bool = False,
    probes: str | None = None,
    record: str | None = None,
    on_event: EventSink | None = None,
) -> Any:
    """Answer prompts under control; a list of `Generation`s, or one for a single prompt.

    model, tokenizer: a transformers model with its tokenizer, or the name or folder of one, or an engine (tokenizer
    None).
    strategy: what tiers mean, "tiers" or "diffadapt" (prompt, temperature and cap as in arXiv 2510.19669).
    prompts: a text, messages, or a list of either; a list is decoded as one batch.
    effort: none, easy, normal, hard, auto, or OpenAI's low, medium, high. preset "off" is the plain engine.
    policies: objects or names, which replace the preset. shadow: only record what would be done. probes: folder of
    `tersely calibrate`, in place of those released for the model; effort "auto" chooses by them. record: folder
    that takes what probes can learn from, of uncontrolled thinking: preset "off", or shadow.
    """
    engine = _engine_of(model, tokenizer)
    options = Options(
        effort=effort,
        preset=preset,
        policies=None if policies is None else tuple(policies),
        max_new_tokens=max_new_tokens,
        answer_reserve=answer_reserve,
        strategy=strategy,
        shadow=shadow,
        probes=probes,
        record=record,
        sampling=Sampling(temperature, top_p, top_k, seed),
    )
    single = _is_single(prompts)
    batch = [cast(Prompt, prompts)] if single else list(cast(Sequence[Prompt], prompts))
    done = Session(engine, markers, think_prompt).run(batch, options, on_event)
    return done[0] if single else done


def _engine_of(model: Any, tokenizer: Any) -> Engine:
    """An engine for what the caller calls a model."""
    if hasattr(model, "capabilities"):
        return cast(Engine, model)
    from .engines.transformers import TransformersEngine, load_engine

    if isinstance(model, (str, os.PathLike)):
        return load_engine(model)
    if tokenizer is None:
        raise OptionError("a model object was given without its tokenizer; pass tokenizer= beside it")
    return TransformersEngine(model, tokenizer)


def _is_single(prompts: Prompt | Sequence[Prompt]) -> bool:
    if isinstance(prompts, str):
        return True
    return bool(prompts) and isinstance(prompts[0], dict)


def custom_generate(
    tokenizer: Any,
    *,
    effort: str = "normal",
    preset: str | None = "balanced",
    policies: Sequence[Policy | str] | None = None,
    max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS,
    answer_reserve: int | None = None,
    markers: Markers | None = None,
    streamer: Any = None,
    stop_strings: Sequence[str] | None = None,
    shadow: bool = False,
) -> Callable[..., Any]:
    """A callable for `model.generate(..., custom_generate=...)` and `pipeline(...)(..., custom_generate=...)`.

    The prompt is the caller's own, so `effort` sets the budget only ("auto" by the prompt's length). Pass the streamer
    and stop strings here: transformers drops them on the way to a callable. `max_new_tokens` must be the one given to
    `model.generate`.
    """
    from .engines.custom_generate import as_custom_generate

    codec = codec_for(tokenizer)
    found = choose_markers(tokenizer, markers, think_prompt=False)
    active = make_policies(preset, None if policies is None else tuple(policies))
    if needy := [p.name for p in active if p.needs & {"signals", "hidden"} or hasattr(p, "bind")]:
        raise CapabilityError(
            f"policy {needy[0]!r} reads signals or hidden states, which a custom_generate does not pass on; "
            "use tersely.generate"
        )
    tier = canonical_effort(effort)
    if tier == "none":
        raise OptionError("effort 'none' is a matter of the prompt; accepted here: easy, normal, hard, auto")
    fit_budget("normal", max_new_tokens, answer_reserve)  # complains here, not in the middle of a batch

    def make_watcher(prompt_ids: list[int]) -> Watcher | None:
        tail = codec.decode(prompt_ids[-32:]).rstrip()
        if not active or tail.endswith(found.close):
            return None
        row_tier = tier_by_length(codec.decode(prompt_ids)) if tier == "auto" else tier
        budget = fit_budget(row_tier, max_new_tokens, answer_reserve)
        return Controller(active, codec, found, budget, opened=tail.endswith(found.open), shadow=shadow)

    return as_custom_generate(make_watcher, tokenizer=tokenizer, streamer=streamer, stop_strings=stop_strings)
