"""Sampling of completions for training, through the controller, with the first token sampled or forced.

The prompt opens the thinking, so the first token of a completion decides between thinking and answering at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..controller.budgets import canonical_effort
from ..controller.controller import ControllerState
from ..controller.engines.transformers.engine import TransformersEngine
from ..controller.options import GenerationOptions
from ..controller.policies import make_policies, make_policy
from ..controller.request_builder import PreparedRequest
from ..controller.session import Session
from ..controller.text.markers import Markers
from ..controller.text.reasoning_parser import split_reasoning
from ..controller.text.tool_calls import Tool
from ..controller.types import Capability, Completion, Prompt, Request, SamplingParams
from ..errors import CapabilityError, MarkerError, OptionError, TerselyError
from ..evaluation.runner import batch_seed
from .config import Rollouts
from .rewards import NO_THINK, THINK

if TYPE_CHECKING:
    from .vllm_sampler import VllmSampler

FREE = "free"  # the start mode of a completion whose first token is left to the model. The others are forced.
_UNAVAILABLE = frozenset({Capability.LOGIT_SIGNALS, Capability.HIDDEN_STATES, Capability.HELPER})
"""What policies cannot have in rollouts."""


class DivergedError(TerselyError, RuntimeError, code="training_diverged"):
    """The weights, the loss or the gradients are not finite."""


@dataclass(frozen=True, slots=True)
class CompletionRequest:
    """One completion to sample: its prompt, its effort tier and the mode in which it starts."""

    prompt: Prompt
    effort: str = "normal"
    start_mode: str = FREE


@dataclass(frozen=True, slots=True)
class Rollout:
    """One sampled completion."""

    prompt_ids: tuple[int, ...]
    ids: tuple[int, ...]  # tokens after the prompt, including the end of sequence if the model wrote one
    forced: tuple[bool, ...]  # for each token, whether it was written by the controller instead of sampled
    start_mode: str
    mode: str  # the mode that the completion turned out to be in
    first_token_logprob: float | None  # of drawing the first token, if not from the policy itself
    p_no_think: float  # the policy's probability of answering without thinking
    thinking: str
    response: str
    thinking_tokens: int
    response_tokens: int
    finish_reason: str
    after_hint: int | None  # thinking tokens of the model after the first hint; None without a hint
    weight: float = 1.0  # of the completion in the loss
    solved: float | None = None  # whether the answer is right, or how far, if the environment has judged it


def build_options(settings: Rollouts) -> GenerationOptions:
    """The generation options of these rollouts; raises OptionError, CapabilityError for unsupported settings."""
    policies = dict(settings.policies)
    if settings.thinking_budget is not None:
        policies = {"budget": {}, **policies}
    built = make_policies(None, [make_policy(name, dict(values)) for name, values in policies.items()])
    if settings.vllm and settings.engine != "vllm":
        raise OptionError(
            "rollouts.vllm is set but rollouts.engine is not vllm; add `engine: vllm`", code="unused_vllm_arguments"
        )
    for policy in built:
        if missing := policy.requires & _UNAVAILABLE:
            raise CapabilityError(
                f"policy {policy.name!r} needs {', '.join(sorted(missing))}, which training rollouts do not provide"
            )
    return GenerationOptions(
        preset="off",
        policies=built,
        max_new_tokens=settings.max_new_tokens,
        answer_reserve=settings.answer_reserve,
        thinking_budget=settings.thinking_budget,
    )


class RolloutSampler:
    """Samples completions of one model; everything is decided by the seed."""

    def __init__(
        self,
        engine: TransformersEngine,
        settings: Rollouts,
        markers: Markers | None = None,
        *,
        share: float = 0.5,  # of forced completions that do not think; part of their `first_token_logprob`
        start: str | None = None,  # text of the one token that starts forced thinking; None samples it
        no_think_tokens: int | None = None,  # limit of completions forced not to think
        tools: Sequence[Tool] = (),
    ) -> None:
        self.engine, self.settings, self.share = engine, settings, share
        self._vllm: VllmSampler | None = None
        self.session = Session(engine, markers)
        self.close = encode_single_token(self.session, self.session.markers.close)
        self.start = None if start is None else encode_single_token(self.session, start)
        self.end = int(engine.tokenizer.eos_token_id)
        self.no_think_tokens = no_think_tokens or settings.max_new_tokens
        self._options = replace(build_options(settings), tools=tuple(tools))

    def __call__(self, requests: Sequence[CompletionRequest], seed: int) -> list[Rollout]:
        """Complete all prompts, `settings.batch` at a time."""
        rollouts: list[Rollout] = []
        with plain_sampling(self.engine.model):
            for number, at in enumerate(range(0, len(requests), self.settings.batch)):
                part = requests[at : at + self.settings.batch]
                rollouts += self._sample_batch(part, batch_seed("rollouts", seed, number))
        return rollouts

    def sampling(self, seed: int) -> SamplingParams:
        """Unmodified sampling from the policy at the temperature of the settings."""
        return SamplingParams(self.settings.temperature, top_p=1.0, top_k=0, seed=seed, inverse_cdf=True)

    def decode(self, requests: Sequence[Request], sampling: SamplingParams) -> list[Completion]:
        """Complete prompts on the engine named in the settings."""
        if self.settings.engine == "transformers":
            return self.engine.generate(requests, sampling)
        if self._vllm is None:
            from .vllm_sampler import VllmSampler

            self._vllm = VllmSampler(self.engine, self.settings.batch, self.settings.vllm)
        return self._vllm.generate(self.engine.model, requests, sampling)

    def decode_batches(
        self, requests: Sequence[Request], sampling: Callable[[int], SamplingParams]
    ) -> list[Completion]:
        """Complete prompts, `settings.batch` at a time; `sampling` is called with the index of a batch's first."""
        completions: list[Completion] = []
        with plain_sampling(self.engine.model):
            for at in range(0, len(requests), self.settings.batch):
                completions += self.decode(requests[at : at + self.settings.batch], sampling(at))
        return completions

    def prompt_ids(self, prompt: Prompt, effort: str) -> tuple[int, ...]:
        """The tokens of a prompt with its thinking opened."""
        return self._open_thinking(self.prepare([CompletionRequest(prompt, effort)])[0])

    def prepare(self, requests: Sequence[CompletionRequest]) -> list[PreparedRequest]:
        """Render the prompts, in order; each tier has its own options."""
        rows: dict[str, Iterator[PreparedRequest]] = {}
        for effort in dict.fromkeys(request.effort for request in requests):
            options = replace(self._options, effort=canonical_effort(effort))
            prompts = [request.prompt for request in requests if request.effort == effort]
            rows[effort] = iter(self.session.prepare(prompts, options))
        return [next(rows[request.effort]) for request in requests]

    def _sample_batch(self, requests: Sequence[CompletionRequest], seed: int) -> list[Rollout]:
        rows = self.prepare(requests)
        prompts = [self._open_thinking(row) for row in rows]
        logprobs = self._first_token_logprobs(prompts)
        firsts = self._choose_first_tokens(requests, logprobs, torch.Generator().manual_seed(seed))
        engine_requests = [
            self._to_engine_request(row, prompt, request, token)
            for row, prompt, request, (token, _) in zip(rows, prompts, requests, firsts, strict=True)
        ]
        completions = self.decode(engine_requests, self.sampling(seed))
        rollouts = []
        for i, ((token, logprob), completion) in enumerate(zip(firsts, completions, strict=True)):
            head = () if token is None else (token,)
            fields = self.parse_completion(head, (False,) * len(head), completion)
            no_think = fields["ids"][:1] == (self.close,) and not fields["thinking_tokens"]
            rollouts.append(
                Rollout(
                    **fields,
                    prompt_ids=prompts[i],
                    start_mode=requests[i].start_mode,
                    mode=NO_THINK if no_think else THINK,
                    first_token_logprob=logprob,
                    p_no_think=math.exp(logprobs[i, self.close]),
                    after_hint=count_after_hint(rows[i], fields["forced"][: fields["thinking_tokens"]]),
                )
            )
        return rollouts

    def _open_thinking(self, row: PreparedRequest) -> tuple[int, ...]:
        """The row's prompt with its thinking opened; the row's controller observes the opening marker.

        The newline after the marker belongs to the prompt, as in templates that open the thinking themselves, so no
        policy acts before the model has written anything.
        """
        if row.state == "answer":
            raise OptionError(
                f"the chat template closes the thinking of tier {row.budget.tier!r} within the prompt, which "
                "leaves no choice to learn; train on the tiers easy, normal or hard",
                code="thinking_closed_by_template",
            )
        if row.state == "thinking":
            return row.rendered.ids
        opening = self.session.codec.encode(f"{self.session.markers.open}\n")
        if row.controller is not None:
            for token in opening:
                if row.controller.state is ControllerState.BEFORE:
                    row.controller.observe(token)
        return (*row.rendered.ids, *opening)

    @torch.no_grad()
    def _first_token_logprobs(self, prompts: Sequence[tuple[int, ...]]) -> Tensor:
        """Log-probabilities of the first token, [rows, vocabulary], at the sampling temperature."""
        distinct, model = list(dict.fromkeys(prompts)), self.engine.model
        ids, mask = self.engine.pad(distinct)
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        output = model(input_ids=ids, attention_mask=mask, position_ids=positions, logits_to_keep=1)
        logprobs = torch.log_softmax(output.logits[:, -1].float() / self.settings.temperature, dim=-1).cpu()
        if not bool(logprobs.isfinite().all()):
            raise DivergedError(
                "the model's probabilities are not finite: training has diverged; resume from the last good "
                "checkpoint (--resume) with a lower learning rate"
            )
        index = {prompt: i for i, prompt in enumerate(distinct)}
        return logprobs[[index[prompt] for prompt in prompts]]

    def _choose_first_tokens(
        self, requests: Sequence[CompletionRequest], logprobs: Tensor, generator: torch.Generator
    ) -> list[tuple[int | None, float | None]]:
        """The first token of each completion and the log-probability it is drawn with; None if left to the engine."""
        allowed = logprobs.index_fill(1, torch.tensor([self.close, self.end]), -math.inf)
        thinking = torch.log_softmax(allowed, dim=-1)
        sampled = torch.multinomial(thinking.exp(), 1, generator=generator)[:, 0].tolist()
        firsts: list[tuple[int | None, float | None]] = []
        for row, request in enumerate(requests):
            if request.start_mode == FREE:
                firsts.append((None, None))
            elif request.start_mode == NO_THINK:
                firsts.append((self.close, math.log(self.share)))
            elif self.start is not None:
                firsts.append((self.start, math.log1p(-self.share)))
            else:
                firsts.append((sampled[row], math.log1p(-self.share) + float(thinking[row, sampled[row]])))
        return firsts

    def _to_engine_request(
        self, row: PreparedRequest, prompt: tuple[int, ...], request: CompletionRequest, first: int | None
    ) -> Request:
        if first is None:
            return replace(row.request, prompt_ids=prompt)
        if request.start_mode == NO_THINK:
            limit = min(row.request.max_new_tokens, self.no_think_tokens)
            return Request((*prompt, first), max(1, limit - 1))
        if row.controller is not None and row.controller.observe(first).force:
            raise CapabilityError(
                "a policy acts at the first token of the thinking, which training samples itself; remove the policy",
                code="policy_at_first_token",
            )
        return replace(row.request, prompt_ids=(*prompt, first), max_new_tokens=row.request.max_new_tokens - 1)

    def parse_completion(
        self, head: Sequence[int], head_forced: Sequence[bool], completion: Completion
    ) -> dict[str, Any]:
        """The fields of a `Rollout` that follow from its text, which starts with the tokens of `head`."""
        ids, forced = (*head, *completion.token_ids), (*head_forced, *completion.forced)
        # A completion that closes its thinking at once, and closes it again later, has thought in between.
        again = int(ids[:1] == (self.close,) and self.close in ids[1:])
        parts = split_reasoning(ids[again:], self.session.codec, self.session.markers, "thinking")
        ended = completion.finish_reason == "stop"
        thinking_tokens = again + parts.thinking_tokens
        return {
            "ids": (*ids, self.end) if ended else ids,
            "forced": (*forced, False) if ended else forced,
            "thinking": parts.thinking,
            "response": parts.answer,
            "thinking_tokens": 0 if ids[:thinking_tokens] == (self.close,) else thinking_tokens,
            "response_tokens": parts.answer_tokens,
            "finish_reason": completion.finish_reason,
        }


def count_after_hint(row: PreparedRequest, forced: Sequence[bool]) -> int | None:
    """The model's own thinking tokens after the first hint; None without a hint."""
    if row.controller is None or not any(d.action == "inject" and d.acted for d in row.controller.decisions):
        return None
    first = next((i for i, was in enumerate(forced) if was), len(forced))
    return sum(not was for was in forced[first:])


def encode_single_token(session: Session, text: str) -> int:
    """The id of a text that is one token, since the choice to think has to be one token; raises MarkerError."""
    ids = session.codec.encode(text)
    if len(ids) != 1:
        raise MarkerError(
            f"{text!r} is {len(ids)} tokens of this model, but the choice to think has to be one token; accepted: a "
            "text that is a single token",
            code="not_a_single_token",
        )
    return ids[0]


@contextmanager
def plain_sampling(model: Any) -> Iterator[None]:
    """Ignore the penalties and cut-offs of the model's generation defaults, which would bias the loss."""
    from transformers import GenerationConfig

    before, training = model.generation_config, model.training
    model.generation_config = GenerationConfig(
        do_sample=True, top_k=0, eos_token_id=before.eos_token_id, pad_token_id=before.pad_token_id
    )
    model.eval()
    try:
        yield
    finally:
        model.generation_config = before
        model.train(training)
