"""From prompts and options to requests, each with its controller.

Effort `auto` chooses a tier by what the model makes of the question, before it starts to think. The prompts of all
tiers begin alike, and the hidden state at the end of that prefix tells a difficulty probe which tier is enough (as in
DiffAdapt, arXiv 2510.19669). Where tiers differ before the question, as where a system prompt says how to think, the
largest tier's prompt is read instead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from ..errors import PromptError
from .budgets import DIFFADAPT, EFFORTS, Budget, canonical_effort, fit_budget, tier_by_length
from .controller import Controller, ControllerState
from .delegation import Helper
from .options import GenerationOptions, check_budget
from .policies.base import Policy
from .prompts import RenderedPrompt, as_messages, get_question, render
from .text.markers import Markers
from .text.tokenizer_adapter import TokenizerAdapter, count_common
from .trace import Decision
from .types import Capability, Engine, ForwardModifier, Prompt, Request, State
from .verification import Verifier

if TYPE_CHECKING:
    from ..probes.tier_selector import TierProbe

_SEAM = 8  # characters at the end of a question that may share a token with what follows it


@dataclass(frozen=True, slots=True)
class TierChoice:
    """The tier of one prompt, why it was chosen, and the tokens that were read for that."""

    tier: str
    reason: str
    tokens: int = 0


def find_prefix(codec: TokenizerAdapter, prompt: Prompt, renderings: Mapping[str, RenderedPrompt]) -> tuple[int, ...]:
    """The ids that all tiers' prompts begin with if they contain the question, else the largest tier's prompt.

    At least one token of each prompt is left out.
    """
    prompts = [rendered.ids for rendered in renderings.values()]
    size = min(count_common(*prompts), min(map(len, prompts)) - 1)
    prefix, question = prompts[0][:size], get_question(prompt).strip()
    if question[: max(1, len(question) - _SEAM)] in codec.decode(prefix):
        return prefix
    return renderings[max(renderings, key=EFFORTS.index)].ids[:-1]


@dataclass(slots=True)
class PreparedRequest:
    """A request that is ready for the engine, with what is needed to make a result of its completion."""

    rendered: RenderedPrompt
    budget: Budget
    controller: Controller | None  # watches the sequence; None where there is nothing to control
    request: Request
    notes: list[Decision] = field(default_factory=list)  # decisions that no controller took
    recomputed: int = 0  # prompt tokens that were read once more to choose the tier
    policies: tuple[Policy, ...] = ()  # as bound to the engine

    @property
    def state(self) -> str:
        """Where the prompt leaves the model; see `RenderedPrompt`."""
        return self.rendered.state

    def final_notes(self, answered: bool) -> list[Decision]:
        """What is known once the sequence has ended: that nothing was answered, what modifiers did, and no thinking."""
        controller = self.controller
        at = 0 if controller is None else controller.position
        notes = [] if answered else [Decision("controller", "note", "the model ended its turn without an answer", at)]
        if controller is None:
            return notes
        for modifier in self.request.modifiers:
            if (summary := modifier.summary()) is not None:
                notes.append(Decision(modifier.modifier.name, *summary, controller.position))
        if controller.state is ControllerState.BEFORE:
            reason = f"the model answered without {controller.markers.open}, so there was no thinking to control"
            notes.append(Decision("controller", "note", reason, controller.position))
        return notes


def distinct_policies(requests: Sequence[PreparedRequest]) -> list[Policy]:
    """The policies of a batch, each once."""
    return list({id(policy): policy for request in requests for policy in request.policies}.values())


@dataclass(frozen=True, slots=True)
class RequestBuilder:
    """Builds the requests of one batch."""

    engine: Engine
    codec: TokenizerAdapter
    markers: Markers
    options: GenerationOptions
    policies: tuple[Policy, ...]
    modifiers: tuple[ForwardModifier, ...] = ()
    verifier: Verifier | None = None
    helper: Helper | None = None

    def build(self, prompts: Sequence[Prompt], tier_probe: TierProbe | None) -> list[PreparedRequest]:
        """Build a request for each prompt; effort `auto` chooses tiers by the probe, or by length without one."""
        check_budget(self.options)
        effort = canonical_effort(self.options.effort)
        if effort != "auto":
            return [self._build_one(prompt, TierChoice(effort, "")) for prompt in prompts]
        if tier_probe is None:
            tiers = [tier_by_length(str(as_messages(prompt)[-1]["content"])) for prompt in prompts]
            reason = "by the prompt's length: this model has no difficulty probe"
            choices = [TierChoice(tier, f"{tier}, {reason}") for tier in tiers]
        else:
            choices = self._choose_by_probe(prompts, tier_probe)
        return [self._build_one(prompt, choice) for prompt, choice in zip(prompts, choices, strict=True)]

    def read_questions(self, prompts: Sequence[Prompt], probe: TierProbe) -> list[tuple[tuple[int, ...], State]]:
        """What the difficulty probe reads of each prompt: the ids, and the hidden state after them."""
        limit = self.options.output_limit
        prefixes = []
        for prompt in prompts:
            renderings = {tier: self._render(prompt, self._budget(tier, limit)) for tier in probe.tiers}
            prefixes.append(find_prefix(self.codec, prompt, renderings))
        unique = list(dict.fromkeys(prefixes))  # samples of one prompt are read once
        states = dict(zip(unique, self.engine.hidden_states(unique, probe.layer), strict=True))
        return [(ids, states[ids]) for ids in prefixes]

    def _choose_by_probe(self, prompts: Sequence[Prompt], probe: TierProbe) -> list[TierChoice]:
        """Choose by the probe, but for questions unlike those that it knows, which get the normal tier."""
        unlike = [probe.find_difference(get_question(prompt)) for prompt in prompts]
        known = [prompt for prompt, difference in zip(prompts, unlike, strict=True) if difference is None]
        read, counted = iter(self.read_questions(known, probe) if known else ()), set[tuple[int, ...]]()
        choices = []
        for difference in unlike:
            if difference is not None:
                reason = f"normal: this question is unlike those that the difficulty probe knows ({difference})"
                choices.append(TierChoice("normal", reason))
                continue
            ids, state = next(read)
            tier, reason = probe.choose(state, likeliest=self.options.strategy == DIFFADAPT)
            choices.append(TierChoice(tier, reason, 0 if ids in counted else len(ids)))
            counted.add(ids)
        return choices

    def _build_one(self, prompt: Prompt, choice: TierChoice) -> PreparedRequest:
        budget = self._budget(choice.tier, self.options.output_limit)
        rendered = self._render(prompt, budget)
        limit = self._max_output_tokens(len(rendered.ids), budget)
        budget = self._budget(choice.tier, limit)
        controller = self._make_controller(prompt, rendered, budget)
        layers = {layer for policy in self.policies for layer in policy.hidden_layers}
        request = Request(
            rendered.ids, limit, controller, self._wants_signals, tuple(sorted(layers)), budget.temperature
        )
        notes = [Decision("effort", "tier", choice.reason, 0)] if choice.reason else []
        prepared = PreparedRequest(rendered, budget, controller, request, notes, choice.tokens, self.policies)
        if controller is not None:
            self._attach_modifiers(prepared, controller)
        return prepared

    def _attach_modifiers(self, prepared: PreparedRequest, controller: Controller) -> None:
        """Let modifiers change the forward pass of a sequence that thinks; in shadow mode only say so."""
        shadow = self.options.shadow
        for modifier in self.modifiers:
            described = modifier.describe()
            if described is None and shadow:
                described = "modify", "the forward pass is not modified in shadow mode"
            if described is not None:
                prepared.notes.append(Decision(modifier.name, *described, 0, acted=not shadow))
        if not shadow:
            attached = tuple(modifier.attach(lambda: controller.boundary) for modifier in self.modifiers)
            prepared.request = replace(prepared.request, modifiers=attached)

    @property
    def _wants_signals(self) -> bool:
        required = {need for policy in self.policies for need in policy.requires}
        return self.options.signals or bool(required & {Capability.LOGIT_SIGNALS, Capability.LOGPROBS})

    def _budget(self, tier: str, limit: int) -> Budget:
        options = self.options
        return fit_budget(tier, limit, options.answer_reserve, options.strategy, options.thinking_budget)

    def _render(self, prompt: Prompt, budget: Budget) -> RenderedPrompt:
        return render(self.engine.tokenizer, prompt, budget, self.markers, self.options.tools)

    def _max_output_tokens(self, prompt_tokens: int, budget: Budget) -> int:
        """Most output tokens that fit in the context after the prompt; raises PromptError if an answer does not."""
        context, limit = self.engine.context_length, self.options.output_limit
        if context is None or prompt_tokens + limit <= context:
            return limit
        if context - prompt_tokens <= budget.reserve:
            raise PromptError(
                f"the prompt has {prompt_tokens} tokens and the model's context {context}, which leaves no room for an "
                f"answer of {budget.reserve}; shorten the prompt"
            )
        return context - prompt_tokens

    def _make_controller(self, prompt: Prompt, rendered: RenderedPrompt, budget: Budget) -> Controller | None:
        if not (self.policies or self.modifiers) or rendered.state == "answer":
            return None
        return Controller(
            self.policies,
            self.codec,
            self.markers,
            budget,
            opened=rendered.state == "thinking",
            shadow=self.options.shadow,
            prompt_tokens=len(rendered.ids),
            verifier=self.verifier,
            helper=self.helper,
            prompt=prompt,
        )
