"""The public faces: `generate` for a model and prompts, `custom_generate` for `model.generate` and pipelines."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, cast

from ..errors import CapabilityError, OptionError
from .budgets import Strategy, canonical_effort, fit_budget, tier_by_length
from .controller import Controller
from .helpers.engine_helper import Helper
from .options import DEFAULT_MAX_NEW_TOKENS, GenerationOptions
from .policies import make_policies, without_engine
from .policies.base import Policy
from .prompts import Prompt, thinking_state_after
from .session import Session
from .streaming import EventSink
from .text.markers import Markers, choose_markers
from .text.tokenizer_adapter import get_adapter
from .types import Engine, SamplingParams, Watcher
from .verification import Verifier


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
    strategy: Strategy = "tiers",
    temperature: float | None = None,
    top_p: float | None = None,
    top_k: int | None = None,
    seed: int | None = None,
    markers: Markers | None = None,
    think_prompt: bool = False,
    shadow: bool = False,
    probes: str | None = None,
    record: str | None = None,
    verifier: Any = None,
    helper: Any = None,
    on_event: EventSink | None = None,
) -> Any:
    """Answer prompts under control; a list of `GenerationResult`s, or one for a single prompt.

    model, tokenizer: a transformers model with its tokenizer, or the name or folder of one, or an engine (tokenizer
    None).
    strategy: what tiers mean, "tiers" or "diffadapt" (prompt, temperature and cap as in arXiv 2510.19669), or budgets.
    prompts: a text, messages, or a list of either; a list is decoded as one batch.
    effort: none, easy, normal, hard, auto, or OpenAI's low, medium, high. preset "off" is the plain engine.
    policies: objects or names, which replace the preset. shadow: only record what would be done. probes: folder of
    `tersely calibrate`, in place of those released for the model; effort "auto" chooses by them. record: folder
    that takes what probes can learn from, of uncontrolled thinking: preset "off", or shadow. verifier, helper: models
    (names, folders, engines, or anything with the methods of `outside`) that policies ask, and delegate to.
    """
    engine = resolve_engine(model, tokenizer)
    options = GenerationOptions(
        effort=effort,
        preset=preset,
        policies=None if policies is None else tuple(policies),
        max_new_tokens=max_new_tokens,
        answer_reserve=answer_reserve,
        strategy=strategy,
        shadow=shadow,
        probes=probes,
        record=record,
        sampling=SamplingParams(temperature, top_p, top_k, seed),
    )
    session = Session(engine, markers, think_prompt, verifier=resolve_verifier(verifier), helper=resolve_helper(helper))
    return unwrap_single(prompts, lambda batch: session.run(batch, options, on_event))


def unwrap_single(prompts: Prompt | Sequence[Prompt], answer: Callable[[list[Prompt]], Sequence[Any]]) -> Any:
    """What a batch comes to: one result for a single prompt, a list for a list."""
    if _is_single(prompts):
        return answer([cast(Prompt, prompts)])[0]
    return answer(list(cast(Sequence[Prompt], prompts)))


def resolve_verifier(given: Any) -> Verifier | None:
    """A verifier as it is, a model as one that is asked what rules do not decide; None stays None."""
    if given is None or hasattr(given, "submit"):
        return cast("Verifier | None", given)
    from .verifiers.llm_verifier import LLMVerifier
    from .verifiers.rule_verifier import RuleVerifier

    return RuleVerifier(LLMVerifier(resolve_engine(given, None)))


def resolve_helper(given: Any) -> Helper | None:
    """A helper as it is, a model as one that writes; None stays None."""
    if given is None or hasattr(given, "write"):
        return cast("Helper | None", given)
    from .helpers.engine_helper import EngineHelper

    return EngineHelper(Session(resolve_engine(given, None)))


def resolve_engine(model: Any, tokenizer: Any) -> Engine:
    """An engine for what the caller calls a model."""
    if hasattr(model, "capabilities"):
        return cast(Engine, model)
    from .engines.transformers.engine import TransformersEngine, load_engine

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
    from .engines.transformers.custom_generate import as_custom_generate

    codec = get_adapter(tokenizer)
    found = choose_markers(tokenizer, markers, think_prompt=False)
    active = without_engine(make_policies(preset, None if policies is None else tuple(policies)))
    if needy := [p.name for p in active if p.needs - {"verifier"} or hasattr(p, "bind")]:
        raise CapabilityError(
            f"policy {needy[0]!r} needs more than a custom_generate passes on (signals, hidden states, trials or a "
            "helper); use tersely.generate"
        )
    tier = canonical_effort(effort)
    if tier == "none":
        raise OptionError("effort 'none' is a matter of the prompt; accepted here: easy, normal, hard, auto")
    fit_budget("normal", max_new_tokens, answer_reserve)  # complains here, not in the middle of a batch

    def make_watcher(prompt_ids: list[int]) -> Watcher | None:
        state = thinking_state_after(codec.decode(prompt_ids[-32:]), found)
        if not active or state == "answer":
            return None
        row_tier = tier_by_length(codec.decode(prompt_ids)) if tier == "auto" else tier
        budget = fit_budget(row_tier, max_new_tokens, answer_reserve)
        return Controller(active, codec, found, budget, opened=state == "thinking", shadow=shadow)

    return as_custom_generate(make_watcher, tokenizer=tokenizer, streamer=streamer, stop_strings=stop_strings)
