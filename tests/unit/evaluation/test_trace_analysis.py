"""The analysis of generations, on written traces."""

from __future__ import annotations

from functools import cache
from itertools import islice
from random import Random

from tersely.controller.text.markers import Markers
from tersely.controller.text.reasoning_parser import split_reasoning
from tersely.controller.text.tokenizer_adapter import TokenizerAdapter
from tersely.controller.trace import GenerationResult, Usage
from tersely.evaluation.tasks.toy_problems import stream
from tersely.evaluation.trace_analysis import TraceReading, read, tokens_until
from tersely.training.toy_models.batches import build_tokenizer
from tersely.training.toy_models.traces import respond

MARKERS = Markers("<think>", "</think>")
MIND_CHANGED = (
    "Leo:61-21=50.\nSo I get 50.\n\n"
    "Wait, with care.\nLeo:61-21:1-1=0;6-2=4=>40.\nNow 40, before 50: different. So the answer is 40.\n\n"
    "Hmm, a second look.\nLeo:61-21=40.\nNow 40, before 40: the same. That makes 40.\n\n"
    "</think>\n\nThe answer is \\boxed{40}."
)


@cache
def codec() -> TokenizerAdapter:
    return TokenizerAdapter(build_tokenizer(200))


def generation(text: str, state: str = "thinking") -> GenerationResult:
    ids = codec().encode(text)
    parts = split_reasoning(ids, codec(), MARKERS, state)
    usage = Usage(40, parts.thinking_tokens, parts.answer_tokens)
    return GenerationResult(text, parts.thinking, parts.answer, "stop", "normal", usage, token_ids=ids)


def reading(text: str) -> TraceReading:
    return read(generation(text), codec())


def test_a_change_of_the_answer() -> None:
    found = reading(MIND_CHANGED)
    assert [s.answer for s in found.statements] == ["50", "40", "40"]
    assert (found.first, found.final) == ("50", "40")
    assert found.verdicts == (True, True)
    assert found.changes("40") == (1, 0)
    assert found.changes("50") == (0, 1)
    ids = codec().encode(MIND_CHANGED)
    assert found.after > 0
    assert codec().decode(ids[: found.tokens - found.after]).rstrip("\n").endswith("different. So the answer is 40.")


def test_verdicts_that_do_not_fit_their_numbers() -> None:
    assert reading(MIND_CHANGED.replace("different", "the same")).verdicts == (False, True)
    assert reading(MIND_CHANGED.replace("before 40: the same", "before 40: different")).verdicts == (True, False)


def test_a_change_in_the_final_answer_leaves_nothing_after_it() -> None:
    found = reading(MIND_CHANGED.replace("\\boxed{40}", "\\boxed{50}"))
    assert (found.first, found.final, found.after) == ("50", "50", 0)


def test_without_a_statement_the_final_answer_is_the_first() -> None:
    found = reading("Leo:61-21=40.\n\n</think>\n\nThe answer is \\boxed{40}.")
    assert (found.statements, found.first, found.after) == ((), "40", 0)


def test_a_truncated_generation_has_no_final_answer() -> None:
    found = reading("Leo:61-21=50.\nSo I get 50.\n\nWait, with")
    assert (found.final, found.first, found.after) == ("", "50", 0)


def test_an_answer_without_thinking() -> None:
    found = read(generation("The answer is \\boxed{7}.", "answer"), codec())
    assert (found.final, found.first, found.tokens, found.after) == ("7", "7", 0, 0)


def test_tokens_until_counts_whole_tokens() -> None:
    ids = codec().encode(MIND_CHANGED)
    for characters in (0, 1, 13, len(MIND_CHANGED)):
        k = tokens_until(ids, codec(), characters)
        assert len(codec().decode(ids[:k])) >= characters
        assert k == 0 or len(codec().decode(ids[: k - 1])) < characters


def test_written_traces_round_trip() -> None:
    rng, repaired = Random(1), 0
    for problem in islice(stream("fit", 1), 60):
        found = reading(respond(problem, "normal", rng).text.replace("<|im_end|>", ""))
        assert found.statements
        assert found.statements[-1].answer == found.final
        assert all(found.verdicts), "the traces never lie about their numbers"
        assert 0 <= found.after < found.tokens
        repaired += found.first != problem.answer == found.final
    assert repaired > 5, "slips are planted in the first pass"
