"""Generations through vLLM for measuring many problems fast.

Policies act by replay: vLLM writes on alone, the controller reads what it wrote up to its first action, and the rest
is thrown away and written anew from there. The texts are what a steered engine gives; the tokens thrown away are an
artefact of measuring and are not counted. So this is for measuring what a policy does, never for saving time.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ..controller.budgets import fit_budget
from ..controller.core import Controller
from ..controller.errors import CapabilityError
from ..controller.parts import spans, split_output
from ..controller.policies import make_policies
from ..controller.pretrained import NAMES, path_of
from ..controller.prompts import Rendered, render
from ..controller.session import Options, Session
from ..controller.trace import Generation, Usage
from .tasks.questions import Question

# For a small model on a few cores, processes and pinned threads of vLLM's own cost more than they bring.
_SETTINGS = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CPU_KVCACHE_SPACE": "2",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
}


@dataclass(slots=True)
class _Row:
    """One prompt on its way: what stands so far, which of it was forced, and whether more is to come."""

    prompt: Rendered
    controller: Controller | None
    ids: list[int] = field(default_factory=list)
    forced: list[bool] = field(default_factory=list)
    finish: str = ""

    def take(self, written: Sequence[int], finish: str) -> None:
        """Read what vLLM wrote, up to the controller's first action, which is carried out."""
        for token in written:
            self.ids.append(token)
            self.forced.append(False)
            directive = self.controller.observe(token) if self.controller else None
            if directive is not None and (directive.force or directive.drop):
                if directive.drop:
                    del self.ids[-directive.drop :], self.forced[-directive.drop :]
                self.ids.extend(directive.force)
                self.forced.extend([True] * len(directive.force))
                return
        self.finish = finish


class VllmAnswers:
    """Answers questions with vLLM in float32; `session` lends tokenizer and markers. Implements `measure.Answer`."""

    def __init__(self, model: str, session: Session, seed: int) -> None:
        for name, value in _SETTINGS.items():
            os.environ.setdefault(name, value)
        try:
            from vllm import LLM
        except ImportError:
            raise CapabilityError("vLLM is not installed; install it, or use the engine 'transformers'") from None
        self.session = session
        # The seed is the engine's: seeds of single requests are known to stop the CPU engine.
        self.llm = LLM(
            model=str(path_of(model)) if model in NAMES else model,
            dtype="float32",
            seed=seed,
            max_model_len=session.engine.context_length,
        )

    def __call__(self, questions: Sequence[Question], options: Options) -> list[Generation]:
        """Answer all questions, in order."""
        policies = make_policies(options.preset, options.policies)
        budget = fit_budget(options.effort, options.max_new_tokens, options.answer_reserve)
        tokenizer, codec, markers = self.session.engine.tokenizer, self.session.codec, self.session.markers
        rows = []
        for question in questions:
            prompt = render(tokenizer, question.problem, budget, markers)
            steered = policies and prompt.state != "answer"
            opened = prompt.state == "thinking"
            rows.append(_Row(prompt, Controller(policies, codec, markers, budget, opened=opened) if steered else None))
        while pending := [row for row in rows if not row.finish]:
            self._advance(pending, options)
        return [self._finish(row, options) for row in rows]

    def _advance(self, rows: list[_Row], options: Options) -> None:
        prompts: list[Any] = [{"prompt_token_ids": [*row.prompt.ids, *row.ids]} for row in rows]
        settings = []
        for row in rows:
            sampling = self.llm.get_default_sampling_params()
            sampling.max_tokens = max(1, options.max_new_tokens - len(row.ids))
            if options.sampling.temperature is not None:
                sampling.temperature = options.sampling.temperature
                sampling.top_p = 1.0 if options.sampling.temperature == 0 else options.sampling.top_p or sampling.top_p
            settings.append(sampling)
        eos = self.session.engine.tokenizer.eos_token_id
        for row, done in zip(rows, self.llm.generate(prompts, settings, use_tqdm=False), strict=True):
            output = done.outputs[0]
            written = list(output.token_ids)
            if written and written[-1] == eos:
                written.pop()
            row.take(written, "length" if output.finish_reason == "length" else "stop")

    def _finish(self, row: _Row, options: Options) -> Generation:
        codec = self.session.codec
        parts = split_output(row.ids, codec, self.session.markers, row.prompt.state)
        return Generation(
            text=codec.decode(row.ids),
            thinking=parts.thinking,
            answer=parts.answer,
            finish_reason=row.finish,
            tier=options.effort,
            usage=Usage(len(row.prompt.ids), parts.thinking_tokens, parts.answer_tokens, sum(row.forced)),
            trace=tuple(row.controller.decisions) if row.controller else (),
            spans=spans(row.ids, row.forced, codec),
            token_ids=tuple(row.ids),
        )
