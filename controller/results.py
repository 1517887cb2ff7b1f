"""Build the result of a sequence from what its engine and its controller have."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from .controller import Controller
from .text.markers import Markers
from .text.reasoning_parser import split_reasoning
from .text.tokenizer_adapter import TokenizerAdapter
from .trace import Decision, GenerationResult, Span, Usage
from .types import Completion


def build_result(
    done: Completion,
    controller: Controller | None,
    codec: TokenizerAdapter,
    markers: Markers,
    *,
    state: str,
    tier: str,
    prompt_tokens: int,
    recomputed: int = 0,
    notes_before: Sequence[Decision] = (),
    notes_after: Sequence[Decision] = (),
) -> GenerationResult:
    """The result of one sequence.

    Args:
        state: where the prompt left the model; see `prompts.RenderedPrompt`.
    """
    parts = split_reasoning(done.token_ids, codec, markers, state)
    return GenerationResult(
        text=codec.decode(done.token_ids),
        thinking=parts.thinking,
        answer=parts.answer,
        finish_reason=done.finish_reason,
        tier=tier,
        usage=Usage(
            prompt=prompt_tokens,
            thinking=parts.thinking_tokens,
            answer=parts.answer_tokens,
            injected=sum(done.forced),
            discarded=done.dropped,
            trial=done.trial,
            verifier=controller.verifier_tokens if controller else 0,
            helper_completion=controller.delegations.tokens if controller else 0,
            helper_prompt=controller.delegations.read if controller else 0,
            recomputed=done.recomputed + recomputed,
        ),
        trace=(*notes_before, *(controller.decisions if controller else ()), *notes_after),
        spans=build_spans(done.token_ids, done.forced, codec),
        token_ids=done.token_ids,
        signals=done.signals,
    )


def build_spans(ids: Sequence[int], forced: Sequence[bool], codec: TokenizerAdapter) -> tuple[Span, ...]:
    """Group an output into runs of sampled and of forced text."""
    spans = []
    for is_forced, run in groupby(zip(ids, forced, strict=True), key=lambda pair: pair[1]):
        spans.append(Span("forced" if is_forced else "sampled", codec.decode([token for token, _ in run])))
    return tuple(spans)
