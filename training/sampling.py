"""Completions of prompts as a training needs them: through the controller, with the first token drawn or forced.

Every completion begins inside the thinking: a chat template that leaves the opening to the model has it written into
the prompt, so the first token of a completion decides between thinking and answering at once.
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
from ..controller.engines.transformers.engine import TransformersEngine
from ..controller.prompts import Prompt
from ..controller.request_builder import PreparedRequest
from ..controller.session import Session
from ..controller.text.markers import Markers
from ..controller.text.reasoning_parser import split_reasoning
from ..controller.text.tool_calls import Tool
from ..controller.types import Completion, Request, SamplingParams
from ..errors import CapabilityError, MarkerError, OptionError, TerselyError
from ..evaluation.runner import batch_seed
from .config import Rollouts
from .options import build_options
from .rewards.base import NO_THINK, THINK

if TYPE_CHECKING:
    from .vllm_sampler import VllmSampler

FREE = "free"
"""A completion that begins as the model likes; the others are begun in a mode, with a call as with thinking."""


class DivergedError(TerselyError, RuntimeError):
    """The model's weights, its loss or its gradients are no longer numbers."""


@dataclass(frozen=True, slots=True)
class CompletionRequest:
    """One completion that is wanted: of which prompt, in which tier, begun how."""

    prompt: Prompt
    effort: str = "normal"
    begun: str = FREE


@dataclass(frozen=True, slots=True)
class Rollout:
    """One completion.

    ids: tokens after the prompt, the end of sequence included where the model put it. forced: which of them were not
    sampled. drawn: the log-probability with which the first token was drawn, where that was not the model's own doing.
    chance: the model's chance to answer at once. after_hint: the model's thinking tokens after the first hint. weight:
    what it counts for in the loss. solved: whether it is right, where that was judged as it was made.
    """

    prompt_ids: tuple[int, ...]
    ids: tuple[int, ...]
    forced: tuple[bool, ...]
    begun: str
    mode: str
    drawn: float | None
    chance: float
    thinking: str
    response: str
    thinking_tokens: int
    response_tokens: int
    finish_reason: str
    after_hint: int | None
    weight: float = 1.0
    solved: bool | None = None


class Sampler:
    """Samples completions of one model.

    share: the chance with which a begun completion is begun without thinking, which its `drawn` holds. start: the text
    that begins thinking where that is begun; None draws its first token from the model, anything but the close. tools:
    what prompts are told of.
    """

    def __init__(
        self,
        engine: TransformersEngine,
        settings: Rollouts,
        markers: Markers | None = None,
        *,
        share: float = 0.5,
        start: str | None = None,
        no_think_tokens: int | None = None,
        tools: Sequence[Tool] = (),
    ) -> None:
        self.engine, self.settings, self.share = engine, settings, share
        self._writer: VllmSampler | None = None
        self.session = Session(engine, markers)
        self.close = single_token(self.session, self.session.markers.close)
        self.start = None if start is None else single_token(self.session, start)
        self.end = int(engine.tokenizer.eos_token_id)
        self.no_think_tokens = no_think_tokens or settings.max_new_tokens
        self._options = replace(build_options(settings), tools=tuple(tools))

    def __call__(
        self, asks: Sequence[CompletionRequest], seed: int, advance: Callable[[int], None] = lambda rows: None
    ) -> list[Rollout]:
        """Complete all prompts, `settings.batch` at a time; the seed decides everything."""
        made: list[Rollout] = []
        size = self.settings.batch
        with plain_sampling(self.engine.model):
            for number, at in enumerate(range(0, len(asks), size)):
                made += self._batch(asks[at : at + size], batch_seed("rollouts", seed, number))
                advance(len(made) - at)
        return made

    def sampling(self, seed: int) -> SamplingParams:
        """How the policy's own tokens are drawn: from its chances as they are, at the settings' temperature."""
        return SamplingParams(self.settings.temperature, top_p=1.0, top_k=0, seed=seed, inverse=True)

    def decode(self, requests: Sequence[Request], sampling: SamplingParams) -> list[Completion]:
        """Have the engine's model complete prompts, on the engine that the settings name."""
        if self.settings.engine == "transformers":
            return self.engine.generate(requests, sampling)
        if self._writer is None:
            from .vllm_sampler import VllmSampler

            self._writer = VllmSampler(self.engine, self.settings.batch, self.settings.vllm)
        return self._writer.generate(self.engine.model, requests, sampling)

    def prompt_ids(self, prompt: Prompt, effort: str) -> tuple[int, ...]:
        """The prompt with the thinking opened."""
        return self._opened(self._prepared([CompletionRequest(prompt, effort)])[0])

    def _batch(self, asks: Sequence[CompletionRequest], seed: int) -> list[Rollout]:
        rows = self._prepared(asks)
        prompts = [self._opened(row) for row in rows]
        chances = self._log_chances(prompts)
        firsts = self._firsts(asks, chances, torch.Generator().manual_seed(seed))
        requests = [
            self._request(row, prompt, ask, first)
            for row, prompt, ask, (first, _) in zip(rows, prompts, asks, firsts, strict=True)
        ]
        done = self.decode(requests, self.sampling(seed))
        return [
            self._rollout(row, prompt, ask, first, math.exp(chance[self.close]), completion)
            for row, prompt, ask, first, chance, completion in zip(
                rows, prompts, asks, firsts, chances, done, strict=True
            )
        ]

    def _prepared(self, asks: Sequence[CompletionRequest]) -> list[PreparedRequest]:
        """Rows in order; each tier has its own options."""
        made: dict[int, PreparedRequest] = {}
        for effort in dict.fromkeys(ask.effort for ask in asks):
            places = [i for i, ask in enumerate(asks) if ask.effort == effort]
            options = replace(self._options, effort=canonical_effort(effort))
            made.update(zip(places, self.session.prepare([asks[i].prompt for i in places], options), strict=True))
        return [made[i] for i in range(len(asks))]

    def _opened(self, row: PreparedRequest) -> tuple[int, ...]:
        """The row's prompt with its thinking open, of which the row's controller is told.

        What stands behind the marker is of the prompt, as where a template opens: no policy acts before the model has.
        """
        if row.state == "answer":
            raise OptionError(
                f"the chat template ends the thinking of tier {row.budget.tier!r} within the prompt, which leaves no "
                "choice to learn; train on the tiers easy, normal or hard"
            )
        if row.state == "thinking":
            return row.rendered.ids
        opening = self.session.codec.encode(f"{self.session.markers.open}\n")
        if row.controller is not None:
            for token in opening:
                if row.controller.phase == "before":
                    row.controller.observe(token)
        return (*row.rendered.ids, *opening)

    @torch.no_grad()
    def _log_chances(self, prompts: Sequence[tuple[int, ...]]) -> Tensor:
        """Log-probabilities of the first token, [rows, vocabulary], at the temperature of sampling."""
        distinct = list(dict.fromkeys(prompts))
        width = max(map(len, distinct))
        ids = torch.tensor([[0] * (width - len(p)) + list(p) for p in distinct])
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in distinct])
        device, positions = self.engine.model.device, (mask.cumsum(1) - 1).clamp(min=0)
        logits = self.engine.model(
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            position_ids=positions.to(device),
            logits_to_keep=1,
        ).logits[:, -1]
        found = torch.log_softmax(logits.float() / self.settings.temperature, dim=-1).cpu()
        if not bool(found.isfinite().all()):
            raise DivergedError(
                "the model's probabilities are no longer numbers: the training has diverged; go on from the last good "
                "checkpoint with a lower learning rate"
            )
        places = {prompt: i for i, prompt in enumerate(distinct)}
        return found[[places[prompt] for prompt in prompts]]

    def _firsts(
        self, asks: Sequence[CompletionRequest], chances: Tensor, generator: torch.Generator
    ) -> list[tuple[int | None, float | None]]:
        """The first token of each completion and the log-probability it is drawn with; None: that is the engine's."""
        thinking = chances.clone()
        thinking[:, [self.close, self.end]] = -math.inf
        thinking = torch.log_softmax(thinking, dim=-1)
        drawn = torch.multinomial(thinking.exp(), 1, generator=generator)[:, 0].tolist()
        made: list[tuple[int | None, float | None]] = []
        for row, ask in enumerate(asks):
            if ask.begun == FREE:
                made.append((None, None))
            elif ask.begun == NO_THINK:
                made.append((self.close, math.log(self.share)))
            elif self.start is not None:
                made.append((self.start, math.log1p(-self.share)))
            else:
                made.append((drawn[row], math.log1p(-self.share) + float(thinking[row, drawn[row]])))
        return made

    def _request(
        self, row: PreparedRequest, prompt: tuple[int, ...], ask: CompletionRequest, first: int | None
    ) -> Request:
        if first is None:
            return replace(row.request, prompt_ids=prompt)
        if ask.begun == NO_THINK:
            limit = min(row.request.max_new_tokens, self.no_think_tokens)
            return Request((*prompt, first), max(1, limit - 1))
        if row.controller is not None and row.controller.observe(first).force:
            raise CapabilityError(
                "a policy acts at the first token of the thinking, which the training draws; leave it out"
            )
        return replace(row.request, prompt_ids=(*prompt, first), max_new_tokens=row.request.max_new_tokens - 1)

    def _rollout(
        self,
        row: PreparedRequest,
        prompt: tuple[int, ...],
        ask: CompletionRequest,
        first: tuple[int | None, float | None],
        chance: float,
        done: Completion,
    ) -> Rollout:
        begin = () if first[0] is None else (first[0],)
        written = self.written(begin, tuple(False for _ in begin), done)
        return Rollout(
            **written,
            prompt_ids=prompt,
            begun=ask.begun,
            mode=NO_THINK if written["ids"][:1] == (self.close,) and not written["thinking_tokens"] else THINK,
            drawn=first[1],
            chance=chance,
            after_hint=after_hint(row, written["forced"][: written["thinking_tokens"]]),
        )

    def written(self, begin: Sequence[int], forced: Sequence[bool], done: Completion) -> dict[str, Any]:
        """Fields of a `Rollout`: all that follows from what was written, which began with these tokens."""
        ids, forced = (*begin, *done.token_ids), (*forced, *done.forced)
        # One that ends its thinking at once and then once more has thought in between, whatever that is called.
        again = int(ids[:1] == (self.close,) and self.close in ids[1:])
        parts = split_reasoning(ids[again:], self.session.codec, self.session.markers, "thinking")
        ended = done.finish_reason == "stop"
        thinking = again + parts.thinking_tokens
        return {
            "ids": (*ids, self.end) if ended else ids,
            "forced": (*forced, False) if ended else forced,
            "thinking": parts.thinking,
            "response": parts.answer,
            "thinking_tokens": 0 if ids[:thinking] == (self.close,) else thinking,
            "response_tokens": parts.answer_tokens,
            "finish_reason": done.finish_reason,
        }


def after_hint(row: PreparedRequest, forced: Sequence[bool]) -> int | None:
    """The model's own thinking tokens after the first hint; None if it got none."""
    if row.controller is None or not any(d.action == "inject" and d.acted for d in row.controller.decisions):
        return None
    first = next((i for i, was in enumerate(forced) if was), len(forced))
    return sum(not was for was in forced[first:])


def single_token(session: Session, text: str) -> int:
    """The one token that a text is; raises MarkerError for several, between which nothing could be decided at once."""
    ids = session.codec.encode(text)
    if len(ids) != 1:
        raise MarkerError(
            f"{text!r} is {len(ids)} tokens of this model, and the choice to think is one token; accepted: a text that "
            "is one token"
        )
    return ids[0]


@contextmanager
def plain_sampling(model: Any) -> Iterator[None]:
    """Sample from the model as it is: penalties and cuts of its generation defaults would bias what is learnt."""
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
