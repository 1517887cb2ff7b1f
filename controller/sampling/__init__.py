"""Running votes on an engine: the samples of all prompts that start together are one batch; and rules by name."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from statistics import fmean
from typing import cast

from ...errors import CapabilityError, OptionError, check_known
from ..controller import Controller, ControllerState
from ..options import GenerationOptions
from ..policies import load_add_ons
from ..request_builder import PreparedRequest
from ..session import Session, closed_by_force
from ..streaming import CancellableWatcher
from ..text.answers import extract_answer, extract_boxed
from ..text.reasoning_parser import split_reasoning
from ..trace import Decision, GenerationResult, Usage
from ..types import Capability, Completion, Directive, Prompt, Request, StepInfo
from .deepconf import DeepConf, DeepConfOffline
from .rules import AggregationRule, Branch, Majority, ModelRule, ShortMofK, VoteFirst, VoteState

ENTRY_POINTS = "tersely.sampling_rules"
RULES: Mapping[str, AggregationRule] = {
    rule.name: rule for rule in (Majority(), ShortMofK(), VoteFirst(), DeepConf(), DeepConfOffline())
}


def resolve_rule(rule: str | AggregationRule) -> AggregationRule:
    """A rule by its name, also of the entry points, or as it is; raises OptionError for an unknown name."""
    if not isinstance(rule, str):
        return rule
    if rule in RULES:
        return RULES[rule]
    add_ons = load_add_ons(ENTRY_POINTS)
    check_known("rule", rule, [*RULES, *add_ons])
    return cast(AggregationRule, add_ons[rule]())


@dataclass(frozen=True, slots=True)
class StopDecision:
    """Why a sample was stopped after `position` tokens of its own, or (`sample` None) why the answer was accepted."""

    sample: int | None
    reason: str
    position: int


@dataclass(frozen=True, slots=True)
class SampleResult:
    """The answer to one prompt from several samples.

    Those that were stopped have `finish_reason` "stopped"; tokens that a branch shares count only as `recomputed`.
    """

    answer: str  # empty if no sample gave one
    votes: dict[str, float]  # weight of each answer, heaviest first
    samples: tuple[GenerationResult, ...]  # in the order they started
    usage: Usage
    trace: tuple[StopDecision, ...]  # which samples were stopped, then why the answer was accepted


@dataclass(slots=True)
class _Sample:
    """One sample; `head` are the tokens of an earlier one that it continues."""

    prepared: PreparedRequest
    watcher: SampleWatcher
    request: Request
    head: Completion | None = None
    completion: Completion | None = None


@dataclass(slots=True)
class _Question:
    """One prompt with its vote, its samples, and the results of those that have finished."""

    prompt: Prompt
    rule: AggregationRule
    vote: VoteState
    samples: list[_Sample] = field(default_factory=list)
    results: list[GenerationResult] = field(default_factory=list)

    def summarize(self) -> SampleResult:
        kinds = [kind.name for kind in fields(Usage)]
        usage = Usage(**{kind: sum(getattr(result.usage, kind) for result in self.results) for kind in kinds})
        trace = [
            StopDecision(sample, reason, len(self.results[sample].token_ids))
            for sample, reason in self.vote.stopped.items()
            if self.results[sample].finish_reason == "stopped"
        ]
        trace.append(StopDecision(None, self.vote.explain(), usage.total))
        votes = self.vote.tally()
        return SampleResult(next(iter(votes), ""), votes, tuple(self.results), usage, tuple(trace))


def sample_all(
    session: Session, prompts: Sequence[Prompt], options: GenerationOptions, rule: AggregationRule, k: int
) -> list[SampleResult]:
    """Answer each prompt from at most k samples under a rule, in order, see `api.sample`; raises OptionError."""
    if k < 1:
        raise OptionError(f"k is {k}; accepted: at least 1 sample", code="invalid_sample_count")
    if k > 1 and options.sampling.temperature == 0:
        raise OptionError(
            f"{k} samples at temperature 0 would be the same; use a temperature above 0, or k=1", code="greedy_samples"
        )
    options = replace(options, signals=options.signals or Capability.LOGIT_SIGNALS in rule.requires)
    if missing := rule.requires - session.engine.capabilities:
        raise CapabilityError(
            f"rule {rule.name!r} needs {', '.join(missing)}, which {session.engine.name!r} does not report; use the "
            "transformers engine, vLLM by `load_async_llm`, or a server that reports them"
        )
    rule = rule.bind(session.engine) if isinstance(rule, ModelRule) else rule
    questions = [_Question(prompt, rule, rule.start_vote(k)) for prompt in prompts]
    batch, sampling, seed = 0, options.sampling, options.sampling.seed
    while branches := [(question, branch) for question in questions for branch in question.vote.start_samples()]:
        started = _start_batch(session, options, branches)
        if seed is not None and batch:
            sampling = replace(sampling, seed=random.Random(f"{seed}:{batch}").getrandbits(31))
        completions = session.engine.generate([sample.request for sample in started], sampling)
        session.end_batch([sample.prepared for sample in started])
        for (question, _), sample, completion in zip(branches, started, completions, strict=True):
            _finish(session, question, sample, completion)
        batch += 1
    return [question.summarize() for question in questions]


def _start_batch(
    session: Session, options: GenerationOptions, branches: Sequence[tuple[_Question, Branch]]
) -> list[_Sample]:
    roots: dict[str | None, list[Prompt]] = {}
    for question, branch in branches:
        if branch.parent is None:
            roots.setdefault(branch.effort, []).append(question.prompt)
    prepared = {
        effort: iter(session.prepare(prompts, replace(options, effort=effort or options.effort)))
        for effort, prompts in roots.items()
    }
    return [
        _start_sample(session, question, next(prepared[branch.effort]))
        if branch.parent is None
        else _start_branch(session, options, question, question.samples[branch.parent], branch.at)
        for question, branch in branches
    ]


def _start_sample(session: Session, question: _Question, prepared: PreparedRequest) -> _Sample:
    watcher = SampleWatcher(question.vote, len(question.samples), session, prepared)
    confidence = Capability.TOP_LOGPROBS in question.rule.requires
    layers = tuple({*prepared.request.layers, *question.vote.layers})
    signals = prepared.request.signals or confidence
    request = replace(prepared.request, signals=signals, confidence=confidence, layers=layers)
    sample = _Sample(prepared, watcher, watcher.wrap(request))
    question.samples.append(sample)
    return sample


def _start_branch(
    session: Session, options: GenerationOptions, question: _Question, parent: _Sample, at: int
) -> _Sample:
    """Start a sample that continues another one after `at` thinking tokens."""
    assert parent.completion is not None  # only finished samples have forks
    (prepared,) = session.prepare([question.prompt], replace(options, effort=parent.prepared.budget.tier))
    sample = _start_sample(session, question, prepared)
    preamble = parent.watcher.preamble
    sample.head = _cut(parent.completion, preamble + at)
    sample.watcher.continue_from(sample.head, preamble)
    tokens = sample.head.token_ids
    sample.request = replace(
        sample.request,
        prompt_ids=(*sample.request.prompt_ids, *tokens),
        max_new_tokens=max(1, sample.request.max_new_tokens - len(tokens)),
    )
    return sample


def _finish(session: Session, question: _Question, sample: _Sample, completion: Completion) -> None:
    """Store a sample's result, and let the vote judge it."""
    head, number = sample.head, len(question.results)
    sample.completion = completion if head is None else _join(head, completion)
    result = session.finish(sample.prepared, sample.completion)
    if head is not None:
        usage = result.usage
        usage = replace(
            usage, thinking=usage.thinking - len(head.token_ids), injected=usage.injected - sum(head.forced)
        )
        result = replace(result, usage=usage)
    if result.finish_reason == "stopped":
        stop = Decision("samples", "stop", question.vote.stopped[number], len(result.token_ids))
        result = replace(result, trace=(*result.trace, stop))
    question.results.append(result)
    question.vote.judge(number, question.prompt, result)


def _cut(completion: Completion, size: int) -> Completion:
    """The first tokens of a completion, without what was spent beyond them."""
    return Completion(
        completion.token_ids[:size], completion.forced[:size], "stopped", signals=completion.signals[:size]
    )


def _join(head: Completion, rest: Completion) -> Completion:
    """The whole completion of a branch, whose head was read once more."""
    return replace(
        rest,
        token_ids=(*head.token_ids, *rest.token_ids),
        forced=(*head.forced, *rest.forced),
        signals=(*head.signals, *rest.signals),
        recomputed=rest.recomputed + len(head.token_ids),
    )


class SampleWatcher(CancellableWatcher):
    """Watches a sample: its controller acts first, then the vote learns what happened, and may end the sample."""

    def __init__(self, vote: VoteState, sample: int, session: Session, prepared: PreparedRequest) -> None:
        super().__init__(lambda: sample in vote.stopped)
        self.vote, self.sample, self.session, self.prepared = vote, sample, session, prepared
        self.controller = prepared.controller or _make_observer(session, prepared)
        self.preamble = int(prepared.state == "before")  # tokens before the thinking, with the marker that opens it
        self._thinking_closed = False
        self._thoughts = 0  # that have ended

    def wrap(self, request: Request) -> Request:
        """See `CancellableWatcher.wrap`; a sample without control is observed as well."""
        return super().wrap(replace(request, watcher=request.watcher or self.controller))

    def continue_from(self, head: Completion, preamble: int) -> None:
        """Start after the first tokens of another sample, `preamble` of which are not thinking."""
        controller, self.preamble = self.controller, preamble or self.preamble
        controller.state = ControllerState.THINKING
        controller.position += len(head.token_ids)
        signals = head.signals or (None,) * len(head.token_ids)
        for token, of_token in list(zip(head.token_ids, signals, strict=True))[preamble:]:
            controller.thinking.add(token, of_token)
        self._thoughts = len(controller.thinking.thoughts)

    def observe(self, token: int, step: StepInfo | None = None) -> Directive:
        cancelled, was_trial = self.is_cancelled(), self._trial_tokens > 0
        before = self.controller.state is ControllerState.BEFORE
        directive = super().observe(token, step)
        if cancelled:
            return directive
        if not was_trial and not directive.trial and step is not None and step.signals is not None:
            self.vote.add_token(self.sample, step.signals.confidence)
        state = self.controller.state
        if state is ControllerState.BEFORE:
            self.preamble += 1
        elif before and self.controller.thinking.ids:
            self.preamble = 0  # it counts as thinking
        closes = state is ControllerState.ANSWER and not self._thinking_closed
        if closes:
            self._thinking_closed = True
            self.vote.close_thinking(self.sample)
        if self.vote.layers and step is not None:
            thinking = self.controller.thinking
            if len(thinking.thoughts) > self._thoughts or closes:
                self.vote.end_thought(self.sample, len(thinking), step.state)
            self._thoughts = len(thinking.thoughts)
        return directive

    def on_finish(self, completion: Completion) -> None:
        answer = None if completion.finish_reason == "stopped" else self._extract_answer(completion)
        self.vote.finish(self.sample, answer, self._thought_confidences())

    def _extract_answer(self, completion: Completion) -> str:
        """The answer of the sample; a model that ended its turn within its thinking may have put it there."""
        state = "thinking" if self.controller.thinking.ids else self.prepared.state
        codec, markers = self.session.codec, self.session.markers
        forced = closed_by_force(completion, codec, markers)
        parts = split_reasoning(completion.token_ids, codec, markers, state, forced)
        return extract_answer(parts.answer) if parts.answer else extract_boxed(parts.thinking) or ""

    def _thought_confidences(self) -> list[tuple[int, float]]:
        """The end and the mean confidence of each thought whose tokens have signals."""
        confidences = []
        for thought in self.controller.thinking.thoughts:
            signals = self.controller.thinking.signals[thought.start : thought.end]
            if tops := [one.top for one in signals if one is not None]:
                confidences.append((thought.end, fmean(tops)))
        return confidences


def _make_observer(session: Session, prepared: PreparedRequest) -> Controller:
    """A controller that follows an uncontrolled sample and does nothing."""
    opened = prepared.state == "thinking"
    observer = Controller((), session.codec, session.markers, prepared.budget, opened=opened, shadow=True)
    if prepared.state == "answer":
        observer.skip_thinking()
    return observer
