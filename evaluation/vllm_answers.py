"""Generations through vLLM for measuring many problems fast.

Policies act by replay: vLLM writes on alone, the controller reads what it wrote up to its first action, and the rest
is thrown away and written anew from there. The texts are what a steered engine gives; the tokens thrown away are an
artefact of measuring and are not counted. So this is for measuring what a policy does, never for saving time.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..controller.engines.base import KEEP, Completion, FinishReason, Sampling
from ..controller.engines.checkpoints import locate
from ..controller.making import Prepared
from ..controller.options import Options
from ..controller.session import Session
from ..controller.trace import Generation
from ..errors import CapabilityError
from .answering import Written

if TYPE_CHECKING:
    from vllm import LLM

# For a small model on a few cores, processes and pinned threads of vLLM's own cost more than they bring.
_SETTINGS = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CPU_KVCACHE_SPACE": "2",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
}


@dataclass(slots=True)
class _Row:
    """One prompt on its way: what stands so far, which of it was forced, and whether more is to come."""

    prepared: Prepared
    ids: list[int] = field(default_factory=list)
    forced: list[bool] = field(default_factory=list)
    dropped: int = 0
    finish: FinishReason | None = None

    def take(self, written: Written, eos: int) -> None:
        """Read what vLLM wrote, up to the controller's first action, which is carried out."""
        ended = [eos] if written.finish_reason == "stop" else []
        for token in (*written.token_ids, *ended):
            self.ids.append(token)
            self.forced.append(False)
            controller = self.prepared.controller
            directive = controller.observe(token) if controller else KEEP
            if directive.force or directive.drop:
                size = len(self.ids) - directive.drop
                self.dropped += directive.drop
                self.ids[size:] = directive.force
                self.forced[size:] = [True] * len(directive.force)
                if len(self.ids) >= self.prepared.request.max_new_tokens:
                    self.finish = "length"
                return
        size = len(self.ids) - len(ended)
        del self.ids[size:], self.forced[size:]
        self.finish = written.finish_reason

    def completion(self) -> Completion:
        """What a steered engine would have put out."""
        return Completion(tuple(self.ids), tuple(self.forced), self.finish or "length", dropped=self.dropped)


def load_llm(model: str, longest: int | None, dtype: str) -> LLM:
    """Start vLLM on a model, in this process; raises CapabilityError if there is no vLLM."""
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    try:
        from vllm import LLM
    except ImportError:
        raise CapabilityError("vLLM is not installed; install it, or use the engine 'transformers'") from None
    return LLM(model=locate(model), dtype=dtype, seed=0, max_model_len=longest)


class VllmAnswers:
    """Answers questions with vLLM; `session`, on another engine, lends tokenizer and markers. Implements `Answerer`.

    greedy: the model decodes greedily by default, which vLLM does not gather from its configuration.
    """

    made = None

    def __init__(self, llm: LLM, session: Session, greedy: bool = False) -> None:
        self.llm, self.session, self.greedy = llm, session, greedy

    def answer(self, problems: Sequence[str], options: Options) -> list[Generation]:
        """See `Answerer.answer`."""
        rows = [_Row(prepared) for prepared in self.session.prepare(problems, options)]
        self._seed(options.sampling)
        eos = self.session.engine.tokenizer.eos_token_id
        while pending := [row for row in rows if row.finish is None]:
            texts = [(*row.prepared.request.prompt_ids, *row.ids) for row in pending]
            limits = [max(1, row.prepared.request.max_new_tokens - len(row.ids)) for row in pending]
            for row, written in zip(pending, self._write(texts, limits, options.sampling), strict=True):
                row.take(written, eos)
        return [self.session.finish(row.prepared, row.completion()) for row in rows]

    def write_on(self, texts: Sequence[Sequence[int]], limits: Sequence[int], sampling: Sampling) -> list[Written]:
        """See `Answerer.write_on`."""
        self._seed(sampling)
        return self._write(texts, limits, sampling)

    def _seed(self, sampling: Sampling) -> None:
        """Seed the engine, which draws from the process's generator: seeds of single requests are known to stop it."""
        import torch

        if sampling.seed is not None:
            torch.manual_seed(sampling.seed)

    def _write(self, texts: Sequence[Sequence[int]], limits: Sequence[int], sampling: Sampling) -> list[Written]:
        prompts: list[Any] = [{"prompt_token_ids": list(ids)} for ids in texts]
        settings = [self._settings(limit, sampling) for limit in limits]
        eos = self.session.engine.tokenizer.eos_token_id
        made = []
        for done in self.llm.generate(prompts, settings, use_tqdm=False):
            output = done.outputs[0]
            ids = list(output.token_ids)
            # A list of dictionaries, one a token: the sampled one's logarithm, before temperature.
            chances = [math.exp(known[token].logprob) for token, known in zip(ids, output.logprobs or (), strict=True)]
            if ids and ids[-1] == eos:
                ids.pop()
            finish: FinishReason = "length" if output.finish_reason == "length" else "stop"
            made.append(Written(tuple(ids), tuple(chances[: len(ids)]), finish))
        return made

    def _settings(self, limit: int, sampling: Sampling) -> Any:
        settings = self.llm.get_default_sampling_params()
        settings.max_tokens, settings.logprobs = limit, 0
        temperature = 0.0 if sampling.temperature is None and self.greedy else sampling.temperature
        if temperature is not None:
            settings.temperature = temperature
            settings.top_p = 1.0 if temperature == 0 else sampling.top_p or settings.top_p
        if sampling.top_k is not None:
            settings.top_k = sampling.top_k
        return settings
