"""A session: an engine and its markers, ready to answer prompts under an effort and a set of policies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from ..errors import CapabilityError, OptionError, PromptError
from .budgets import Budget, canonical_effort, fit_budget, tier_by_length
from .core import Controller
from .engines.base import Completion, Engine, Request, Sampling
from .markers import Markers, choose_markers
from .parts import spans, split_output
from .policies import make_policies
from .policies.base import Policy
from .prompts import Prompt, Rendered, as_messages, render
from .stream import EventSink, Narrator
from .text import codec_for
from .trace import Generation, Usage

DEFAULT_MAX_NEW_TOKENS = 2048


@dataclass(frozen=True, slots=True)
class Options:
    """How to answer: see `faces.generate` for the meaning of each; signals: have the engine report them."""

    effort: str = "normal"
    preset: str | None = "balanced"
    policies: tuple[Policy | str, ...] | None = None
    max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS
    answer_reserve: int | None = None
    shadow: bool = False
    signals: bool = False
    sampling: Sampling = field(default_factory=Sampling)


@dataclass(frozen=True, slots=True)
class Prepared:
    """One prompt on its way: rendered, with its budget, the controller that watches it if any, and the request."""

    rendered: Rendered
    budget: Budget
    controller: Controller | None
    request: Request


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
        rows = self.prepare(prompts, options)
        sink = None
        if emit is not None:
            controllers, states = [r.controller for r in rows], [r.rendered.state for r in rows]
            sink = Narrator(self.codec, self.markers, controllers, states, emit)
        completions = self.engine.generate([r.request for r in rows], options.sampling, sink)
        if sink is not None:
            sink.finish()
        return [self.finish(row, done) for row, done in zip(rows, completions, strict=True)]

    def prepare(self, prompts: Sequence[Prompt], options: Options) -> list[Prepared]:
        """Make prompts ready for an engine.

        Raises OptionError, PromptError for a prompt that is too long, CapabilityError if a policy lacks what it needs.
        """
        if options.max_new_tokens < 1:
            raise OptionError(f"max_new_tokens is {options.max_new_tokens}; accepted: 1 or more")
        policies = make_policies(options.preset, options.policies)
        needed = {need for p in policies for need in p.needs} | ({"signals"} if options.signals else set())
        if missing := needed - self.engine.capabilities:
            raise CapabilityError(
                f"engine {self.engine.name!r} lacks {', '.join(sorted(missing))}, which is needed here"
            )
        return [self._prepare(prompt, options, policies) for prompt in prompts]

    def _prepare(self, prompt: Prompt, options: Options, policies: tuple[Policy, ...]) -> Prepared:
        question = str(as_messages(prompt)[-1]["content"])
        effort = canonical_effort(options.effort)
        tier = tier_by_length(question) if effort == "auto" else effort
        budget = fit_budget(tier, options.max_new_tokens, options.answer_reserve)
        rendered = render(self.engine.tokenizer, prompt, budget, self.markers)
        room, limit = self.engine.context_length, options.max_new_tokens
        if room is not None and len(rendered.ids) + limit > room:
            limit = room - len(rendered.ids)
            if limit <= budget.reserve:
                raise PromptError(
                    f"the prompt has {len(rendered.ids)} tokens and the model's context {room}, which leaves no room "
                    f"for an answer of {budget.reserve}; shorten the prompt"
                )
            budget = fit_budget(tier, limit, options.answer_reserve)
        controller = None
        if policies and rendered.state != "answer":
            controller = Controller(
                policies,
                self.codec,
                self.markers,
                budget,
                opened=rendered.state == "thinking",
                shadow=options.shadow,
            )
        return Prepared(rendered, budget, controller, Request(rendered.ids, limit, controller, options.signals))

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
            ),
            trace=tuple(row.controller.decisions) if row.controller else (),
            spans=spans(done.token_ids, done.forced, self.codec),
            token_ids=done.token_ids,
            signals=done.signals,
        )


def with_seed(options: Options, seed: int | None) -> Options:
    """The same options with another seed."""
    return replace(options, sampling=replace(options.sampling, seed=seed))
