"""A session: an engine and its markers, ready to answer prompts under an effort and a set of policies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import CapabilityError, OptionError, PromptError
from .budgets import Budget, canonical_effort, fit_budget, tier_by_length
from .core import Controller
from .effort import TierChoice, renderings, shared_prefix
from .engines.base import Completion, Engine, Opened, Request, Sampling, Watcher
from .markers import Markers, choose_markers
from .parts import spans, split_output
from .policies import make_policies
from .policies.base import Policy
from .probing import bound, tier_probe
from .prompts import Prompt, Rendered, as_messages, render
from .stream import EventSink, Narrator
from .text import codec_for
from .trace import Decision, Generation, Usage

if TYPE_CHECKING:
    from ..probes.choice import TierProbe
    from .recording import LiveRecorder

DEFAULT_MAX_NEW_TOKENS = 2048


@dataclass(frozen=True, slots=True)
class Options:
    """How to answer: see `faces.generate` for the meaning of each; signals: have the engine report them.

    probes: a folder of `tersely calibrate`; None takes what is released for the model. record: a folder to keep what
    probes learn from.
    """

    effort: str = "normal"
    preset: str | None = "balanced"
    policies: tuple[Policy | str, ...] | None = None
    max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS
    answer_reserve: int | None = None
    strategy: str = "tiers"
    shadow: bool = False
    signals: bool = False
    probes: str | None = None
    record: str | None = None
    sampling: Sampling = field(default_factory=Sampling)


@dataclass(slots=True)
class Prepared:
    """One prompt on its way: rendered, with its budget, the controller that watches it if any, and the request.

    Where the tier is chosen while the prompt is read, all but the request are settled then. notes are decisions that
    no controller took.
    """

    rendered: Rendered
    budget: Budget
    controller: Controller | None
    request: Request
    notes: list[Decision] = field(default_factory=list)

    @property
    def state(self) -> str:
        """Where the prompt leaves the model; see `Rendered`."""
        return self.rendered.state


class Session:
    """Answers prompts on one engine.

    markers: None finds them; think_prompt makes a model without markers think between <think> and </think>.
    Raises MarkerError if the model's markers cannot be found.
    """

    def __init__(self, engine: Engine, markers: Markers | None = None, think_prompt: bool = False) -> None:
        self.engine = engine
        self.codec = codec_for(engine.tokenizer)
        self.markers = choose_markers(engine.tokenizer, markers, think_prompt)

    def run(self, prompts: Sequence[Prompt], options: Options, emit: EventSink | None = None) -> list[Generation]:
        """Answer all prompts as one batch, in order; `emit` receives text as it is made."""
        recorder = self._recorder(options)
        rows = self._prepare(prompts, options, () if recorder is None else (recorder.policy(),))
        sink = None
        if emit is not None:
            sink = Narrator(self.codec, self.markers, rows, emit)
        completions = self.engine.generate([r.request for r in rows], options.sampling, sink)
        if sink is not None:
            sink.finish()
        made = [self.finish(row, done) for row, done in zip(rows, completions, strict=True)]
        if recorder is not None:
            recorder.keep(prompts, made, [row.controller is not None for row in rows])
        return made

    def prepare(self, prompts: Sequence[Prompt], options: Options) -> list[Prepared]:
        """Make prompts ready for an engine.

        Raises OptionError, PromptError for a prompt that is too long, CapabilityError if a policy lacks what it needs.
        """
        return self._prepare(prompts, options, ())

    def _recorder(self, options: Options) -> LiveRecorder | None:
        """Who keeps what is seen, if that is asked for; raises OptionError where thinking would be meddled with."""
        if options.record is None:
            return None
        if not options.shadow and make_policies(options.preset, options.policies):
            raise OptionError(
                "what is recorded must be uncontrolled thinking; record in shadow mode, or with the preset 'off'"
            )
        from .recording import LiveRecorder

        return LiveRecorder(Path(options.record), self.engine, self.codec, self.markers)

    def _prepare(self, prompts: Sequence[Prompt], options: Options, more: tuple[Policy, ...]) -> list[Prepared]:
        if options.max_new_tokens < 1:
            raise OptionError(f"max_new_tokens is {options.max_new_tokens}; accepted: 1 or more")
        policies, probe = self.learnt(options)
        policies = (*policies, *more)
        needed = {need for p in policies for need in p.needs} | ({"signals"} if options.signals else set())
        if probe is not None:
            needed.add("hidden")
        if missing := needed - self.engine.capabilities:
            raise CapabilityError(
                f"engine {self.engine.name!r} lacks {', '.join(sorted(missing))}, which is needed here"
            )
        effort = canonical_effort(options.effort)
        making = _Making(self, options, policies, "signals" in needed)
        if probe is not None:
            return [making.chosen(prompt, probe) for prompt in prompts]
        return [making.row(prompt, effort) for prompt in prompts]

    def learnt(self, options: Options) -> tuple[tuple[Policy, ...], TierProbe | None]:
        """The policies as they are used on this engine, and the probe that chooses tiers, None where nothing does.

        Raises ProbeError where there is no probe for this model but must be one, ArtifactError for another model's.
        """
        made = make_policies(options.preset, options.policies)
        policies = tuple(bound(policy, self.engine, options.probes) for policy in made)
        auto = canonical_effort(options.effort) == "auto"
        return policies, tier_probe(self.engine, options.probes) if auto else None

    def finish(self, row: Prepared, done: Completion) -> Generation:
        """Make the result of a prepared prompt from what an engine put out."""
        parts = split_output(done.token_ids, self.codec, self.markers, row.rendered.state)
        return Generation(
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
                reprefilled=done.reprefilled,
            ),
            trace=(*row.notes, *(row.controller.decisions if row.controller else ())),
            spans=spans(done.token_ids, done.forced, self.codec),
            token_ids=done.token_ids,
            signals=done.signals,
        )


@dataclass(frozen=True, slots=True)
class _Making:
    """Makes the rows of one call."""

    session: Session
    options: Options
    policies: tuple[Policy, ...]
    signals: bool

    def row(self, prompt: Prompt, effort: str) -> Prepared:
        """The row of a prompt under an effort; `auto` goes by the prompt's length."""
        tier, notes = effort, []
        if effort == "auto":
            tier = tier_by_length(str(as_messages(prompt)[-1]["content"]))
            reason = f"{tier}, by the prompt's length: there is no difficulty probe for this model"
            notes = [Decision("effort", "tier", reason, 0)]
        budget = self._budget(tier, self.options.max_new_tokens)
        rendered = render(self.session.engine.tokenizer, prompt, budget, self.session.markers)
        limit = self._room(len(rendered.ids), budget)
        budget = self._budget(tier, limit)
        controller = self._controller(rendered, budget)
        request = self._request(rendered.ids, limit, controller, temperature=budget.temperature)
        return Prepared(rendered, budget, controller, request, notes)

    def chosen(self, prompt: Prompt, probe: TierProbe) -> Prepared:
        """The row of a prompt whose tier is chosen once its beginning is read."""
        session, options = self.session, self.options
        budgets = {tier: self._budget(tier, options.max_new_tokens) for tier in probe.tiers}
        known = renderings(session.engine.tokenizer, prompt, session.markers, budgets)
        prefix, longest = shared_prefix(list(known.values())), max(len(r.ids) for r in known.values())
        limit = self._room(longest, budgets[probe.tiers[-1]])

        def settle(tier: str, reason: str) -> Opened:
            row.rendered, row.budget = known[tier], self._budget(tier, limit)
            row.controller = self._controller(row.rendered, row.budget)
            row.notes = [Decision("effort", "tier", reason, 0)]
            return Opened(row.rendered.ids, row.controller, row.budget.temperature)

        request = self._request(prefix, limit, None, TierChoice(probe, prefix, longest, settle))
        row = Prepared(known[probe.tiers[-1]], budgets[probe.tiers[-1]], None, request)
        return row

    def _budget(self, tier: str, limit: int) -> Budget:
        return fit_budget(tier, limit, self.options.answer_reserve, self.options.strategy)

    def _room(self, prompt: int, budget: Budget) -> int:
        """Output tokens that fit beside so many of the prompt; raises PromptError if they leave none for an answer."""
        room, limit = self.session.engine.context_length, self.options.max_new_tokens
        if room is None or prompt + limit <= room:
            return limit
        if room - prompt <= budget.reserve:
            raise PromptError(
                f"the prompt has {prompt} tokens and the model's context {room}, which leaves no room "
                f"for an answer of {budget.reserve}; shorten the prompt"
            )
        return room - prompt

    def _controller(self, rendered: Rendered, budget: Budget) -> Controller | None:
        if not self.policies or rendered.state == "answer":
            return None
        return Controller(
            self.policies,
            self.session.codec,
            self.session.markers,
            budget,
            opened=rendered.state == "thinking",
            shadow=self.options.shadow,
        )

    def _request(
        self,
        ids: tuple[int, ...],
        limit: int,
        watcher: Watcher | None,
        opening: TierChoice | None = None,
        temperature: float | None = None,
    ) -> Request:
        layers = {layer for policy in self.policies for layer in getattr(policy, "layers", ())}
        return Request(ids, limit, watcher, self.signals, tuple(sorted(layers)), opening, temperature)


def with_seed(options: Options, seed: int | None) -> Options:
    """The same options with another seed."""
    return replace(options, sampling=replace(options.sampling, seed=seed))
