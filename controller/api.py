"""The public API: `generate`, `sample`, and `custom_generate` for `model.generate` and pipelines."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Unpack, cast, overload

from ..errors import CapabilityError, OptionError, PromptError
from .budgets import Budget, canonical_effort, fit_budget, tier_by_length
from .controller import Controller
from .delegation import Helper
from .options import GenerationOptions, OptionsDict, make_options
from .policies import make_policies
from .policies.base import Policy
from .prompts import RenderedPrompt, as_messages, thinking_state_after
from .replay import bind_for_replay
from .request_builder import PreparedRequest
from .session import Session, build_result
from .streaming import EventSink
from .text.markers import Markers, choose_markers, resolve_markers
from .text.tokenizer_adapter import get_adapter
from .trace import GenerationResult
from .types import Capability, Engine, Prompt, Request, Watcher
from .verification import RuleVerifier, Verifier

if TYPE_CHECKING:
    from .engines.transformers.decode import BatchDecoder
    from .sampling import SampleResult
    from .sampling.rules import AggregationRule


class GenerateArguments(OptionsDict, total=False):
    """The keyword arguments of `generate`."""

    tokenizer: Any
    options: GenerationOptions | None
    markers: Markers | str | Sequence[str] | None
    think_prompt: bool
    verifier: Any
    helper: Any
    on_event: EventSink | None


@overload
def generate(model: Any, prompts: Prompt, **arguments: Unpack[GenerateArguments]) -> GenerationResult: ...
@overload
def generate(
    model: Any, prompts: Sequence[Prompt], **arguments: Unpack[GenerateArguments]
) -> list[GenerationResult]: ...
def generate(
    model: Any,
    prompts: Prompt | Sequence[Prompt],
    *,
    tokenizer: Any = None,
    options: GenerationOptions | None = None,
    markers: Markers | str | Sequence[str] | None = None,
    think_prompt: bool = False,
    verifier: Any = None,
    helper: Any = None,
    on_event: EventSink | None = None,
    **overrides: Unpack[OptionsDict],
) -> GenerationResult | list[GenerationResult]:
    """Answer prompts under control: one result for one prompt, a list for a list.

    Args:
        model: a name or folder, which stays loaded for further calls; a transformers model, with its `tokenizer`; or an
            engine (`tersely.load_engine`, `tersely.connect`).
        prompts: a text, messages, or a list of either, which is decoded as one batch.
        options: see `GenerationOptions`; `overrides` are the same options as keywords.
        markers: how the model opens and closes its thinking; None finds out.
        think_prompt: make a model without markers think between <think> and </think>.
        verifier: a model that policies ask: a name, a folder, the URL of an OpenAI-compatible server, an engine, or
            a `verification.Verifier`.
        helper: one that they delegate to: the same, or a `delegation.Helper`.
        on_event: receives text as it is generated.

    Raises:
        OptionError, PromptError, MarkerError, ModelError, CapabilityError: with a stable `code`.
    """
    batch, single = split_prompts(prompts)
    resolved = make_options(options, **overrides)
    session = open_session(model, tokenizer, markers, think_prompt, verifier, helper)
    results = session.run(batch, resolved, on_event)
    return results[0] if single else results


@overload
def sample(
    model: Any, prompts: Prompt, *, k: int = ..., rule: str | AggregationRule = ..., **settings: Any
) -> SampleResult: ...
@overload
def sample(
    model: Any, prompts: Sequence[Prompt], *, k: int = ..., rule: str | AggregationRule = ..., **settings: Any
) -> list[SampleResult]: ...
def sample(
    model: Any,
    prompts: Prompt | Sequence[Prompt],
    *,
    k: int = 5,
    rule: str | AggregationRule = "majority",
    tokenizer: Any = None,
    options: GenerationOptions | None = None,
    markers: Markers | str | Sequence[str] | None = None,
    think_prompt: bool = False,
    verifier: Any = None,
    helper: Any = None,
    **overrides: Any,
) -> SampleResult | list[SampleResult]:
    """Answer prompts from at most k samples each, stopped early once the answer is decided.

    Samples of all prompts are decoded as one batch, and equal prompts are read once where the model's attention allows
    it. A model that is greedy by default needs a temperature.

    Args:
        rule: "majority", "short", "vote-first", "deepconf", "deepconf-offline" or "tree", or an `AggregationRule`
            with its own settings, such as `Guided(probes=...)`.

    All other arguments are those of `generate`; policies act on each sample.
    """
    from .sampling import resolve_rule, sample_all

    batch, single = split_prompts(prompts)
    resolved, aggregation = make_options(options, **overrides), resolve_rule(rule)
    session = open_session(model, tokenizer, markers, think_prompt, verifier, helper)
    results = sample_all(session, batch, resolved, aggregation, k)
    return results[0] if single else results


def open_session(
    model: Any,
    tokenizer: Any = None,
    markers: Markers | str | Sequence[str] | None = None,
    think_prompt: bool = False,
    verifier: Any = None,
    helper: Any = None,
) -> Session:
    """A session on what the caller calls a model; see `generate`."""
    session = Session(resolve_engine(model, tokenizer), resolve_markers(markers), think_prompt)
    named = isinstance(model, str | os.PathLike) and isinstance(verifier, str | os.PathLike)
    if named and os.fspath(model) == os.fspath(verifier):
        verifier = session.engine  # whose weights are then shared
    session.verifier, session.helper = resolve_verifier(verifier), resolve_helper(helper)
    return session


def split_prompts(prompts: Prompt | Sequence[Prompt]) -> tuple[list[Prompt], bool]:
    """The prompts as a list, and whether it was a single one; raises PromptError for anything else."""
    if isinstance(prompts, str):
        return [prompts], True
    if not isinstance(prompts, Sequence):
        raise PromptError(
            f"prompts is of type {type(prompts).__name__}; accepted: a text, messages, or a list of either",
            code="invalid_prompt_type",
        )
    if prompts and isinstance(prompts[0], Mapping):
        return [cast(Prompt, prompts)], True
    for prompt in prompts:
        as_messages(cast(Prompt, prompt))  # raises for anything else
    return list(cast("Sequence[Prompt]", prompts)), False


def resolve_verifier(verifier: Any, rules: bool = True) -> Verifier | None:
    """A verifier object as it is; a model, or a server's URL, as one that is asked what rules cannot decide.

    Without `rules` it is asked everything.
    """
    if verifier is None or hasattr(verifier, "submit"):
        return cast("Verifier | None", verifier)
    from .verifiers import EndpointVerifier, LLMVerifier

    served = isinstance(verifier, str) and verifier.startswith(("http://", "https://"))
    asked = EndpointVerifier(verifier) if served else LLMVerifier(resolve_engine(verifier, reads=True))
    return RuleVerifier(asked) if rules else asked


def resolve_helper(helper: Any) -> Helper | None:
    """A helper object as it is; a model as one that writes and reviews."""
    if helper is None or hasattr(helper, "write"):
        return cast("Helper | None", helper)
    from .helpers import EngineHelper

    return EngineHelper(Session(resolve_engine(helper)))


def resolve_engine(model: Any, tokenizer: Any = None, *, reads: bool = False) -> Engine:
    """An engine for what the caller calls a model; models loaded by name are cached.

    With `reads`, one that reads much and writes little gets the dtype in which it reads fastest.
    """
    if hasattr(model, "capabilities"):
        return cast(Engine, model)
    if isinstance(model, (str, os.PathLike)):
        from .engines.transformers.engine import reading_dtype

        return _load_cached(os.fspath(model), reading_dtype() if reads else "auto")
    if not hasattr(model, "generate"):
        raise OptionError(
            f"model is of type {type(model).__name__}; accepted: a name or folder, a transformers model with its "
            "tokenizer, or an engine",
            code="invalid_model",
        )
    if tokenizer is None:
        raise OptionError("a model object needs its tokenizer; pass tokenizer=", code="missing_tokenizer")
    from .engines.transformers.engine import TransformersEngine

    return TransformersEngine(model, tokenizer)


@lru_cache(maxsize=2)
def _load_cached(name: str, dtype: str) -> Engine:
    from .engines.transformers.engine import load_engine

    return load_engine(name, dtype)


class CustomGenerate:
    """A callable for `model.generate(custom_generate=...)`, with the `results` of its last call."""

    def __init__(
        self,
        tokenizer: Any,
        policies: Sequence[Policy],
        markers: Markers,
        make_budget: Callable[[str, int], Budget],
        shadow: bool,
        **streaming: Any,
    ) -> None:
        from .engines.transformers.decode import as_custom_generate

        self.results: list[GenerationResult] = []
        self._codec, self._markers = get_adapter(tokenizer), markers
        self._policies, self._make_budget, self._shadow = policies, make_budget, shadow
        self._prepared: list[PreparedRequest] = []
        self._room = 0  # output tokens that `model.generate` allows
        self._generate = as_custom_generate(
            self._make_watcher, tokenizer=tokenizer, on_decoded=self._keep_results, **streaming
        )

    def __call__(self, model: Any, input_ids: Any, *, generation_config: Any, **prepared: Any) -> Any:
        self._prepared, self._room = [], generation_config.max_length - input_ids.shape[1]
        return self._generate(model, input_ids, generation_config=generation_config, **prepared)

    def _make_watcher(self, prompt_ids: list[int]) -> Watcher | None:
        codec, text = self._codec, self._codec.decode(prompt_ids)
        rendered = RenderedPrompt(tuple(prompt_ids), text, thinking_state_after(text, self._markers))
        budget, opened = self._make_budget(text, self._room), rendered.state == "thinking"
        controller = None
        if self._policies and rendered.state != "answer":
            controller = Controller(self._policies, codec, self._markers, budget, opened=opened, shadow=self._shadow)
        request = Request(rendered.ids, budget.thinking + budget.reserve, controller)
        self._prepared.append(PreparedRequest(rendered, budget, controller, request))
        return controller

    def _keep_results(self, decoder: BatchDecoder) -> None:
        self.results = [
            build_result(sequence.completion(), prepared, self._codec, self._markers)
            for sequence, prepared in zip(decoder.sequences, self._prepared, strict=True)
        ]


def custom_generate(
    tokenizer: Any,
    *,
    effort: str = "normal",
    preset: str | None = "balanced",
    policies: Sequence[Policy | str] | None = None,
    answer_reserve: int | None = None,
    markers: Markers | str | Sequence[str] | None = None,
    streamer: Any = None,
    stop_strings: Sequence[str] | None = None,
    shadow: bool = False,
) -> CustomGenerate:
    """A callable for `model.generate(..., custom_generate=...)` and `pipeline(...)(..., custom_generate=...)`.

    The prompt is the caller's own, so `effort` sets the budget only ("auto" by the prompt's length), within the
    `max_new_tokens` given to `model.generate`. Hidden states are not read, so `balanced` uses no trained probe but what
    the text says. Pass the streamer and stop strings here, as transformers drops them on the way to a callable. Trace
    and usage are in the `results` of what is returned.
    """
    resolved_markers = choose_markers(tokenizer, resolve_markers(markers), think_prompt=False)
    given = make_policies(preset, None if policies is None else tuple(policies))
    active = bind_for_replay(given, trials=True)  # what asks for them is refused below
    if unfit := [policy.name for policy in active if policy.requires - {Capability.VERIFIER}]:
        raise CapabilityError(
            f"policy {unfit[0]!r} needs more than custom_generate provides (signals, hidden states, trials or a "
            "helper); use tersely.generate"
        )
    tier = canonical_effort(effort)
    if tier == "none":
        raise OptionError("effort 'none' changes the prompt, which is yours here; accepted: easy, normal, hard, auto")

    def make_budget(prompt: str, room: int) -> Budget:
        return fit_budget(tier_by_length(prompt) if tier == "auto" else tier, room, answer_reserve)

    streaming = {"streamer": streamer, "stop_strings": stop_strings}
    return CustomGenerate(tokenizer, active, resolved_markers, make_budget, shadow, **streaming)
