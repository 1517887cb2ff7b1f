"""A session: an engine and its markers, ready to answer prompts under an effort and a set of policies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import CapabilityError, OptionError
from .budgets import canonical_effort
from .options import GenerationOptions
from .policies import make_policies, make_policy
from .policies.base import Policy
from .probe_registry import bind_policy, load_tier_probe
from .prompts import Prompt
from .request_builder import PreparedRequest, RequestBuilder
from .streaming import EventSink, StreamEmitter
from .text.markers import Markers, choose_markers
from .text.split_output import build_spans, split_reasoning
from .text.tokenizer_adapter import get_adapter
from .trace import Decision, GenerationResult, Usage
from .types import Completion, Engine

if TYPE_CHECKING:
    from ..probes.tier_selector import TierProbe
    from .drift import BatchDriftTracker
    from .helpers.engine_helper import Helper
    from .live_recorder import LiveRecorder
    from .verification import Verifier


class Session:
    """Answers prompts on one engine.

    markers: None finds them; think_prompt makes a model without markers think between <think> and </think>. verifier:
    whom policies ask, None decides by rules alone. helper: who writes what policies delegate. Raises MarkerError if the
    model's markers cannot be found.
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
        self._bound: dict[tuple[Policy, str | None], Policy] = {}
        self._tier_probes: dict[str | None, TierProbe | None] = {}

    def run(
        self, prompts: Sequence[Prompt], options: GenerationOptions, emit: EventSink | None = None
    ) -> list[GenerationResult]:
        """Answer all prompts as one batch, in order; `emit` receives text as it is made."""
        recorder = self._recorder(options)
        rows = self._prepare(prompts, options, () if recorder is None else (recorder.policy(),))
        sink = None
        if emit is not None:
            sink = StreamEmitter(self.codec, self.markers, rows, emit)
        completions = self.engine.generate([r.request for r in rows], options.sampling, sink)
        if sink is not None:
            sink.finish()
        self.note_drift(rows, options)
        made = [self.finish(row, done) for row, done in zip(rows, completions, strict=True)]
        if recorder is not None:
            recorder.keep(prompts, made, [row.controller is not None for row in rows])
        return made

    def prepare(self, prompts: Sequence[Prompt], options: GenerationOptions) -> list[PreparedRequest]:
        """Make prompts ready for an engine.

        Raises OptionError, PromptError for a prompt that is too long, CapabilityError if a policy lacks what it needs.
        """
        return self._prepare(prompts, options, ())

    def _recorder(self, options: GenerationOptions) -> LiveRecorder | None:
        """Who keeps what is seen, if that is asked for; raises OptionError where thinking would be meddled with."""
        if options.record is None:
            return None
        if not options.shadow and make_policies(options.preset, options.policies):
            raise OptionError(
                "what is recorded must be uncontrolled thinking; record in shadow mode, or with the preset 'off'"
            )
        from .live_recorder import LiveRecorder

        return LiveRecorder(Path(options.record), self.engine, self.codec, self.markers)

    def _prepare(
        self, prompts: Sequence[Prompt], options: GenerationOptions, more: tuple[Policy, ...]
    ) -> list[PreparedRequest]:
        if options.max_new_tokens < 1:
            raise OptionError(f"max_new_tokens is {options.max_new_tokens}; accepted: 1 or more")
        policies, probe = self.learnt(options)
        policies = (*policies, *more)
        needed = {need for p in policies for need in p.needs} | ({"signals"} if options.signals else set())
        if probe is not None:
            needed.add("hidden")
        self._check(needed)
        effort = canonical_effort(options.effort)
        making = RequestBuilder(self, options, policies, bool(needed & {"signals", "chances"}))
        rows = [making.row(p, effort) if probe is None else making.chosen(p, probe) for p in prompts]
        if making.steers is not None and not options.shadow:
            for row in rows:
                row.request = replace(row.request, steering=making.steers.steering(row.boundary))
        if making.shortens is not None and not options.shadow:
            for row in rows:
                row.request = replace(row.request, leaving=making.shortens.leaving(row.boundary))
        return rows

    def _check(self, needed: set[str]) -> None:
        """Raise CapabilityError for what is needed and not there; rules verify where nobody else does."""
        if "helper" in needed and self.helper is None:
            raise CapabilityError(
                "a policy delegates, and there is nobody to delegate to; name a larger model (helper)"
            )
        if "review" in needed and not getattr(self.helper, "reviews", False):
            raise CapabilityError(
                "a policy has the helper look over drafts, and this helper cannot; give one on the transformers engine"
            )
        if missing := needed - self.engine.capabilities - {"helper", "review", "verifier"}:
            raise CapabilityError(
                f"engine {self.engine.name!r} lacks {', '.join(sorted(missing))}, which is needed here"
            )

    def learnt(self, options: GenerationOptions) -> tuple[tuple[Policy, ...], TierProbe | None]:
        """The policies as they are used on this engine, and the probe that chooses tiers, None where nothing does.

        With effort `auto` the readiness exit is among them where the probe counts on it: a tier is a first guess, and
        what the thinking shows corrects it. What was loaded once is kept. Raises ProbeError where there is no probe for
        this model but must be one, ArtifactError for another model's.
        """
        named = make_policies(options.preset, options.policies)
        probe = self._tier_probe(options.probes) if canonical_effort(options.effort) == "auto" else None
        policies = tuple(self._bind(policy, options.probes) for policy in named)
        if probe is not None and probe.exits and all(policy.name != "readiness" for policy in policies):
            policies = (*policies, self._bind(make_policy("readiness"), options.probes))
        return policies, probe

    def _bind(self, policy: Policy, probes: str | None) -> Policy:
        if not hasattr(policy, "bind"):
            return policy
        key = policy, probes
        if key not in self._bound:
            self._bound[key] = bind_policy(policy, self.engine, probes)
        return self._bound[key]

    def _tier_probe(self, probes: str | None) -> TierProbe | None:
        if probes not in self._tier_probes:
            self._tier_probes[probes] = load_tier_probe(self.engine, probes)
        return self._tier_probes[probes]

    def note_drift(self, rows: Sequence[PreparedRequest], options: GenerationOptions) -> None:
        """Say in the traces of a batch that is over if questions are no longer like those of a policy's certificate."""
        for policy in self.learnt(options)[0]:
            drift: BatchDriftTracker | None = getattr(policy, "drift", None)
            if drift is not None and (since := drift.settle().since) is not None:
                reason = (
                    f"from the question numbered {since} of this session on, questions are unlike those that the "
                    "threshold was certified on; calibrate on questions like these"
                )
                for row in rows:
                    row.notes.append(Decision(policy.name, "drift", reason, 0, acted=False))

    def finish(self, row: PreparedRequest, done: Completion) -> GenerationResult:
        """Make the result of a prepared prompt from what an engine put out."""
        parts = split_reasoning(done.token_ids, self.codec, self.markers, row.rendered.state)
        controller = row.controller
        return GenerationResult(
            text=self.codec.decode(done.token_ids),
            thinking=parts.thinking,
            answer=parts.answer,
            finish_reason=done.finish_reason,
            tier=row.budget.tier,
            usage=Usage(
                prompt=len(row.rendered.ids),
                thinking=parts.thinking_tokens,
                answer=parts.answer_tokens,
                forced=sum(done.forced),
                discarded=done.dropped,
                probe=done.trial,
                verifier=controller.verifier_tokens if controller else 0,
                delegated=controller.delegated.tokens if controller else 0,
                consulted=controller.delegated.read if controller else 0,
                reprefilled=done.reprefilled,
            ),
            trace=(*row.notes, *(controller.decisions if controller else ()), *row.left(), *row.unthought()),
            spans=build_spans(done.token_ids, done.forced, self.codec),
            token_ids=done.token_ids,
            signals=done.signals,
        )
