"""A session: an engine and its markers, ready to answer prompts under an effort and a set of policies.

It makes the results as well, and rows that an engine decodes together while each streams and can be cancelled.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import CapabilityError, OptionError
from .budgets import DIFFADAPT, canonical_effort
from .delegation import Helper
from .options import GenerationOptions
from .policies import keep_budget, make_policies, make_policy, resolve_modifier
from .policies.base import Policy
from .probe_registry import load_tier_probe
from .request_builder import PreparedRequest, RequestBuilder, distinct_policies
from .streaming import CancellableWatcher, EventSink, StreamEmitter
from .text.markers import Markers, choose_markers
from .text.reasoning_parser import ReasoningParser, split_reasoning, truncate_at_stop
from .text.tokenizer_adapter import TokenizerAdapter, get_adapter
from .text.tool_calls import CALL_ENDS
from .trace import Decision, GenerationResult, Span, Usage
from .types import SESSION_CAPABILITIES, BindContext, Capability, Completion, Engine, ForwardModifier, Prompt, TokenSink
from .verification import Verifier

if TYPE_CHECKING:
    from ..probes.tier_selector import TierProbe
    from .policies.record import LiveRecorder

_Bindable = TypeVar("_Bindable", Policy, ForwardModifier)


@dataclass(frozen=True, slots=True)
class ResolvedOptions:
    """What options mean on a session's engine: policies and modifiers bound to it, and the probe that chooses tiers."""

    policies: tuple[Policy, ...]
    modifiers: tuple[ForwardModifier, ...]
    tier_probe: TierProbe | None


class Session:
    """Answers prompts on one engine; for the arguments see `api.generate`.

    Raises MarkerError where the model's markers cannot be found. Without a verifier, rules decide.
    """

    def __init__(
        self,
        engine: Engine,
        markers: Markers | None = None,
        think_prompt: bool = False,
        *,
        verifier: Verifier | None = None,
        helper: Helper | None = None,
    ) -> None:
        self.engine = engine
        self.codec = get_adapter(engine.tokenizer)
        self.markers = choose_markers(engine.tokenizer, markers, think_prompt)
        self.verifier, self.helper = verifier, helper
        self._bind_once: Callable[..., Any] = cache(lambda part, probes: part.bind(BindContext(engine, probes)))
        self._load_tier_probe = cache(lambda probes: load_tier_probe(engine, probes))

    def run(
        self, prompts: Sequence[Prompt], options: GenerationOptions, emit: EventSink | None = None
    ) -> list[GenerationResult]:
        """Answer all prompts as one batch, in order; `emit` receives text as it is generated."""
        recorder = self._make_recorder(options)
        requests = self.prepare(prompts, options, () if recorder is None else (recorder.policy(),))
        rows = [BatchRow(self, request, None, emit=emit, number=number) for number, request in enumerate(requests)]
        completions = self.engine.generate([row.request for row in rows], options.sampling, make_sink(rows))
        if emit is not None:
            for row in rows:
                row.emitter.finish()
        self.end_batch(requests)
        results = [row.result(done) for row, done in zip(rows, completions, strict=True)]
        if recorder is not None:
            recorder.keep(prompts, results, [request.controller is not None for request in requests])
        return results

    def prepare(
        self, prompts: Sequence[Prompt], options: GenerationOptions, more: tuple[Policy, ...] = ()
    ) -> list[PreparedRequest]:
        """Make prompts ready for the engine; `more` policies follow those of the options.

        Raises OptionError for an option that is not accepted, PromptError for a prompt that is empty or too long, and
        CapabilityError where the engine or the session lacks what a policy requires.
        """
        resolved = self.resolve(options)
        policies = (*resolved.policies, *more)
        required = {need for policy in policies for need in policy.requires}
        required |= {Capability.LOGIT_SIGNALS} if options.signals else set()
        required |= {Capability.FORWARD_MODIFIERS} if resolved.modifiers else set()
        required |= {Capability.HIDDEN_STATES} if resolved.tier_probe is not None else set()
        self._check(required, policies)
        builder = RequestBuilder(
            self.engine, self.codec, self.markers, options, policies, resolved.modifiers, self.verifier, self.helper
        )
        return builder.build(prompts, resolved.tier_probe)

    def resolve(self, options: GenerationOptions) -> ResolvedOptions:
        """Bind policies and modifiers to the engine, and load the probe that chooses tiers; both are cached.

        A thinking budget that is asked for is kept, whatever the policies are. With effort `auto`, the readiness exit
        joins the policies where the probe counts on it: the tier is a first guess, which the thinking then corrects.
        DiffAdapt has no exit. Raises ProbeError for a missing probe, ArtifactError for one of another model.
        """
        auto = canonical_effort(options.effort) == "auto"
        tier_probe = self._load_tier_probe(options.probes) if auto else None
        policies = make_policies(options.preset, options.policies)
        if options.thinking_budget is not None:
            policies = keep_budget(policies)
        if tier_probe is not None and tier_probe.exits and options.strategy != DIFFADAPT:
            bound = [self._bind(policy, options.probes) for policy in policies]
            if all(policy.name != "readiness" for policy in bound):
                policies = (*policies, make_policy("readiness"))
        return ResolvedOptions(
            tuple(self._bind(policy, options.probes) for policy in policies),
            tuple(self._bind(resolve_modifier(modifier), options.probes) for modifier in options.modifiers),
            tier_probe,
        )

    def end_batch(self, requests: Sequence[PreparedRequest]) -> None:
        """Put what policies report about a finished batch, such as drift, into the traces of its requests."""
        for policy in distinct_policies(requests):
            if (note := policy.end_batch()) is not None:
                for request in requests:
                    request.notes.append(Decision(policy.name, "drift", note, 0, acted=False))

    def finish(self, prepared: PreparedRequest, done: Completion) -> GenerationResult:
        """Make the result of a request from the engine's completion."""
        return build_result(done, prepared, self.codec, self.markers)

    def _check(self, required: set[Capability], policies: Sequence[Policy]) -> None:
        """Raise CapabilityError for what is required and missing; without a verifier, rules verify."""
        named = {need: policy.name for policy in reversed(policies) for need in policy.requires}
        if (name := named.get(Capability.HELPER)) and self.helper is None:
            raise CapabilityError(
                f"policy {name!r} needs a helper model; name one with helper= (--helper)", code="missing_helper"
            )
        if (name := named.get(Capability.DRAFT_REVIEW)) and not getattr(self.helper, "reviews", False):
            raise CapabilityError(
                f"policy {name!r} has the helper review drafts, which this helper cannot do; use one on the "
                "transformers engine",
                code="missing_draft_review",
            )
        if missing := required - self.engine.capabilities - SESSION_CAPABILITIES:
            raise CapabilityError(f"engine {self.engine.name!r} lacks {', '.join(sorted(missing))}; use another engine")

    def _make_recorder(self, options: GenerationOptions) -> LiveRecorder | None:
        """What records a batch, if that is requested; raises OptionError where the thinking would be changed."""
        if options.record is None:
            return None
        if not options.shadow and make_policies(options.preset, options.policies):
            raise OptionError("only uncontrolled thinking can be recorded; use shadow mode or preset 'off'")
        from .policies.record import LiveRecorder

        return LiveRecorder(Path(options.record), self.engine, self.codec, self.markers)

    def _bind(self, part: _Bindable, probes: str | None) -> _Bindable:
        if type(part).bind is Policy.bind:
            return part  # the default binds nothing, and such a policy need not be hashable
        bound: _Bindable = self._bind_once(part, probes)
        return bound


def build_result(
    done: Completion, prepared: PreparedRequest, codec: TokenizerAdapter, markers: Markers
) -> GenerationResult:
    """The result of one request from the engine's completion."""
    controller = prepared.controller
    parts = split_reasoning(done.token_ids, codec, markers, prepared.state, closed_by_force(done, codec, markers))
    answered = done.finish_reason != "stop" or bool(parts.answer.strip()) or parts.thinking.rstrip().endswith(CALL_ENDS)
    return GenerationResult(
        text=codec.decode(done.token_ids),
        thinking=parts.thinking,
        answer=parts.answer,
        finish_reason=done.finish_reason,
        tier=prepared.budget.tier,
        usage=Usage(
            prompt=len(prepared.rendered.ids),
            thinking=parts.thinking_tokens,
            answer=parts.answer_tokens,
            injected=sum(done.forced),
            discarded=done.dropped,
            trial=done.trial,
            verifier=controller.questions.tokens if controller else 0,
            helper_completion=controller.delegations.tokens if controller else 0,
            helper_prompt=controller.delegations.read if controller else 0,
            recomputed=done.recomputed + prepared.recomputed,
        ),
        trace=(*prepared.notes, *(controller.decisions if controller else ()), *prepared.final_notes(answered)),
        spans=build_spans(done.token_ids, done.forced, codec),
        token_ids=done.token_ids,
        signals=done.signals,
    )


def closed_by_force(done: Completion, codec: TokenizerAdapter, markers: Markers) -> bool:
    """Whether the closing marker of an output was not sampled."""
    return any(done.forced) and markers.close in codec.decode(
        [token for token, forced in zip(done.token_ids, done.forced, strict=True) if forced]
    )


def build_spans(ids: Sequence[int], forced: Sequence[bool], codec: TokenizerAdapter) -> tuple[Span, ...]:
    """Group an output into runs of sampled and of forced text."""
    spans = []
    for is_forced, run in groupby(zip(ids, forced, strict=True), key=lambda pair: pair[1]):
        spans.append(Span("forced" if is_forced else "sampled", codec.decode([token for token, _ in run])))
    return tuple(spans)


class BatchRow(CancellableWatcher):
    """One row of a batch: `stops` end the answer, which is not streamed from `hide` on; `emit` receives new text."""

    def __init__(
        self,
        session: Session,
        prepared: PreparedRequest,
        is_cancelled: Callable[[], bool] | None,
        stops: Sequence[str] = (),
        hide: str = "",
        emit: EventSink | None = None,
        number: int = 0,
    ) -> None:
        parser = ReasoningParser(session.markers, prepared.state, stops, hide, session.codec)
        super().__init__(lambda: parser.stopped or (is_cancelled is not None and is_cancelled()))
        self.session, self.prepared, self.stops = session, prepared, stops
        self.streams = emit is not None or bool(stops)
        self.request = self.wrap(prepared.request) if is_cancelled or stops else prepared.request
        self.emitter = StreamEmitter(session.codec, parser, emit or (lambda event: None), prepared.controller, number)

    def on_tokens(self, tokens: Sequence[int], forced: bool) -> None:
        """Stream what the engine wrote; see `types.TokenSink`."""
        self.emitter(tokens, forced)

    def result(self, completion: Completion) -> GenerationResult:
        """The result, cut at the first stop string."""
        result = self.session.finish(self.prepared, completion)
        answer, stopped = truncate_at_stop(result.answer, self.stops)
        return replace(result, answer=answer, finish_reason="stop") if stopped else result


def make_sink(rows: Sequence[BatchRow]) -> TokenSink | None:
    """The sink of rows that an engine decodes as one batch; None if none of them streams."""

    def sink(row: int, tokens: Sequence[int], forced: bool) -> None:
        rows[row].on_tokens(tokens, forced)

    return sink if any(row.streams for row in rows) else None
