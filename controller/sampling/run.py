"""Running polls on an engine: the samples of all prompts that begin now are one batch, then those that begin next."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from ...errors import OptionError
from ..options import GenerationOptions, with_seed
from ..prompts import Prompt
from ..request_builder import PreparedRequest
from ..session import Session
from ..trace import Decision, GenerationResult
from ..types import Completion, Request
from .research.verified import VerifiedVote
from .result import SampleResult, StopDecision, sum_usage
from .sample_watcher import SampleWatcher
from .vote import AggregationRule, Branch, VoteState


@dataclass(slots=True)
class _Sample:
    """One sample; prefix: what it goes on from, of a sample before it."""

    row: PreparedRequest
    member: SampleWatcher
    prefix: Completion | None
    request: Request
    done: Completion | None = None


@dataclass(slots=True)
class _Question:
    """One prompt with its poll and its samples, those that have ended with what they came to."""

    prompt: Prompt
    poll: VoteState
    samples: list[_Sample] = field(default_factory=list)
    made: list[GenerationResult] = field(default_factory=list)

    def result(self) -> SampleResult:
        """What the samples came to."""
        usage = sum_usage(generation.usage for generation in self.made)
        trace = [
            StopDecision(sample, reason, len(self.made[sample].token_ids))
            for sample, reason in self.poll.stopped.items()
            if self.made[sample].finish_reason == "stopped"
        ]
        trace.append(StopDecision(None, self.poll.verdict(), usage.total))
        votes = self.poll.votes()
        return SampleResult(next(iter(votes), ""), votes, tuple(self.made), usage, tuple(trace))


def sample_all(
    session: Session, prompts: Sequence[Prompt], options: GenerationOptions, rule: AggregationRule, k: int
) -> list[SampleResult]:
    """Answer each prompt by at most k samples under a rule, in order; see `faces.sample`.

    Raises OptionError for a k below 1, or several samples without chance, and what `Session.prepare` raises.
    """
    if k < 1:
        raise OptionError(f"k is {k}; accepted: at least 1 sample")
    if k > 1 and options.sampling.temperature == 0:
        raise OptionError(f"{k} samples at temperature 0 are one and the same; give a temperature above 0, or k=1")
    options = replace(options, signals=options.signals or rule.signals)
    questions = [_Question(prompt, rule.poll(k)) for prompt in prompts]
    wave = 0
    while begun := [(q, _begin(session, options, q, start)) for q in questions for start in q.poll.draw()]:
        sampling = with_seed(options, _seed_of(options.sampling.seed, wave)).sampling
        for opens in (False, True):  # an engine takes prompts with openings apart from others
            batch = [(q, sample) for q, sample in begun if (sample.request.opening is not None) == opens]
            completions = session.engine.generate([sample.request for _, sample in batch], sampling)
            session.note_drift([sample.row for _, sample in batch], options)
            for (question, sample), done in zip(batch, completions, strict=True):
                _finish(session, question, sample, done)
        wave += 1
    return [question.result() for question in questions]


def _begin(session: Session, options: GenerationOptions, question: _Question, start: Branch) -> _Sample:
    """Make a sample ready for the engine."""
    parent = None if start.parent is None else question.samples[start.parent]
    if parent is not None:
        options = replace(options, effort=parent.row.budget.tier)  # the tier has been chosen
    (row,) = session.prepare([question.prompt], options)
    member = SampleWatcher(question.poll, len(question.samples), session, row)
    request = row.request
    prefix = None
    if parent is not None and parent.done is not None:
        before = parent.member.before
        prefix = _head(parent.done, before + start.at)
        member.begin(request.watcher, prefix, before)
        ids, limit = (*request.prompt_ids, *prefix.token_ids), request.max_new_tokens - len(prefix.token_ids)
        request = replace(request, prompt_ids=ids, max_new_tokens=limit, watcher=member)
    else:
        request = member.around(request)
    sample = _Sample(row, member, prefix, request)
    question.samples.append(sample)
    return sample


def _finish(session: Session, question: _Question, sample: _Sample, done: Completion) -> None:
    """Note what a sample came to, and let the verifier look at it where there is one."""
    prefix, number = sample.prefix, len(question.made)
    sample.done = done if prefix is None else _joined(prefix, done)
    generation = session.finish(sample.row, sample.done)
    if prefix is not None:
        usage, size = generation.usage, len(prefix.token_ids)
        usage = replace(usage, thinking=usage.thinking - size, forced=usage.forced - sum(prefix.forced))
        generation = replace(generation, usage=usage)
    if generation.finish_reason == "stopped":
        stop = Decision("samples", "stop", question.poll.stopped[number], len(generation.token_ids))
        generation = replace(generation, trace=(*generation.trace, stop))
    question.made.append(generation)
    if isinstance(question.poll, VerifiedVote):
        question.poll.judge(number, question.prompt, generation)


def _head(done: Completion, size: int) -> Completion:
    """The first tokens of a completion, with nothing of what was spent beside them."""
    return Completion(done.token_ids[:size], done.forced[:size], "stopped", signals=done.signals[:size])


def _joined(head: Completion, rest: Completion) -> Completion:
    """A completion as a whole, whose head was read once more."""
    return replace(
        rest,
        token_ids=(*head.token_ids, *rest.token_ids),
        forced=(*head.forced, *rest.forced),
        signals=(*head.signals, *rest.signals),
        reprefilled=rest.reprefilled + len(head.token_ids),
    )


def _seed_of(seed: int | None, wave: int) -> int | None:
    """The seed of a batch: the caller's for the first, others for those that follow."""
    return seed if seed is None or wave == 0 else random.Random(f"{seed}:{wave}").getrandbits(31)
