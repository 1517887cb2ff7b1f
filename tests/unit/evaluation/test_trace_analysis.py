"""The reading of generations and the facts of the model card, on written traces whose truth is known."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from itertools import islice
from random import Random
from typing import Any

import numpy as np
import pytest

from tersely.controller.budgets import TIERS
from tersely.controller.controller import Controller
from tersely.controller.options import GenerationOptions
from tersely.controller.text.markers import Markers
from tersely.controller.text.reasoning_parser import split_reasoning
from tersely.controller.text.tokenizer_adapter import TokenizerAdapter
from tersely.controller.trace import Decision, GenerationResult, Usage
from tersely.controller.types import KEEP
from tersely.errors import CapabilityError
from tersely.evaluation.acceptance.cli import as_text
from tersely.evaluation.acceptance.measure import GREEDY, MODES, HintOnce, Run, cell, measure, predictable
from tersely.evaluation.runner import load_runner
from tersely.evaluation.tasks.questions import Question
from tersely.evaluation.tasks.toy_problems import Problem, stream
from tersely.evaluation.trace_analysis import Statement, TraceReading, read, tokens_until
from tersely.training.toy_models.tokenizer import build_tokenizer
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


def test_a_change_of_mind_is_read() -> None:
    found = reading(MIND_CHANGED)
    assert [s.answer for s in found.statements] == ["50", "40", "40"]
    assert (found.first, found.final) == ("50", "40")
    assert found.verdicts == (True, True)
    assert found.changes("40") == (1, 0)
    assert found.changes("50") == (0, 1)
    ids = codec().encode(MIND_CHANGED)
    assert codec().decode(ids[: found.settled]).rstrip("\n").endswith("different. So the answer is 40.")
    assert found.after == found.tokens - found.settled > 0


def test_a_verdict_that_does_not_fit_its_numbers_is_noticed() -> None:
    assert reading(MIND_CHANGED.replace("different", "the same")).verdicts == (False, True)
    assert reading(MIND_CHANGED.replace("before 40: the same", "before 40: different")).verdicts == (True, False)


def test_nothing_comes_after_a_change_in_the_final_answer() -> None:
    found = reading(MIND_CHANGED.replace("\\boxed{40}", "\\boxed{50}"))
    assert (found.first, found.final, found.after) == ("50", "50", 0)


def test_thinking_without_a_statement_has_its_final_answer_as_first() -> None:
    found = reading("Leo:61-21=40.\n\n</think>\n\nThe answer is \\boxed{40}.")
    assert (found.statements, found.first, found.after) == ((), "40", 0)


def test_a_generation_cut_off_has_no_final_answer() -> None:
    found = reading("Leo:61-21=50.\nSo I get 50.\n\nWait, with")
    assert (found.final, found.first, found.after) == ("", "50", 0)


def test_no_thinking_is_read_as_an_answer_alone() -> None:
    found = read(generation("The answer is \\boxed{7}.", "answer"), codec())
    assert (found.final, found.first, found.tokens, found.after) == ("7", "7", 0, 0)


def test_positions_count_whole_tokens() -> None:
    ids = codec().encode(MIND_CHANGED)
    for characters in (0, 1, 13, len(MIND_CHANGED)):
        k = tokens_until(ids, codec(), characters)
        assert len(codec().decode(ids[:k])) >= characters
        assert k == 0 or len(codec().decode(ids[: k - 1])) < characters


def test_written_traces_are_read_as_they_were_written() -> None:
    rng, repaired = Random(1), 0
    for problem in islice(stream("fit", 1), 60):
        found = reading(respond(problem, "normal", rng).text.replace("<|im_end|>", ""))
        assert found.statements
        assert found.statements[-1].answer == found.final
        assert all(found.verdicts), "the traces never lie about their numbers"
        assert 0 <= found.after < found.tokens
        repaired += found.first != problem.answer == found.final
    assert repaired > 5, "slips are planted in the first pass"


# -- hints -----------------------------------------------------------------------------------------------------


def test_a_hint_falls_once_at_a_sentence_end() -> None:
    ids = codec().encode(MIND_CHANGED)
    watcher = Controller((HintOnce(12),), codec(), MARKERS, TIERS["normal"])
    acted = [(i, d) for i, token in enumerate(ids, 1) if (d := watcher.observe(token)) is not KEEP]
    assert len(acted) == 1
    place, directive = acted[0]
    assert place >= 12
    assert codec().decode(ids[:place]).rstrip("\n").endswith(".")
    assert codec().decode(directive.force).strip() == "[Be concise.]"


def test_measuring_with_vllm_says_when_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(CapabilityError, match="not installed"):
        load_runner("tersely-tiny-small", "vllm")


# -- facts -----------------------------------------------------------------------------------------------


class WrittenModel:
    """A model whose generations are written traces: it repairs most slips and is brief once hinted."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = {p.id: p for p in problems}
        self.asked: list[tuple[str, float | None, int]] = []

    def __call__(self, questions: Sequence[Question], options: GenerationOptions) -> list[GenerationResult]:
        self.asked.append((options.effort, options.sampling.temperature, len(questions)))
        rng, mode = Random(3), "hint" if options.policies else options.effort
        made = []
        for question in questions:
            text = respond(self.problems[question.id], mode, rng).text.replace("<|im_end|>", "")
            done = generation(text, "answer" if mode == "none" else "thinking")
            trace = (Decision("hint once", "inject", "", 9),) if options.policies else ()
            made.append(replace(done, trace=trace, usage=replace(done.usage, prompt=rng.randint(40, 80))))
        return made


@cache
def facts() -> dict[str, Any]:
    problems = list(islice(stream("fit", 2), 96))
    questions = [Question(p.id, p.problem, p.answer, p.level, p.kind) for p in problems]
    model = WrittenModel(problems)
    found = measure(model, codec(), questions[:72], questions[72:], greedy=False)
    assert [a[:2] for a in model.asked[:6]] == [*((mode, None) for mode in MODES), ("normal", 0.0), ("normal", None)]
    assert [a[2] for a in model.asked] == [72] * 5 + [24] + [12] * 6
    assert found["foretold"]["n"] == 96
    return found


def test_the_facts_of_written_traces_are_those_written() -> None:
    modes = facts()["modes"]
    assert set(modes) == {*MODES, GREEDY}
    assert set(modes["normal"]) == {*"123456", "hard half", "all"}
    assert (modes["normal"]["1"]["n"], modes["normal"]["hard half"]["n"], modes["normal"]["all"]["n"]) == (12, 36, 72)
    assert modes["none"]["all"]["accuracy"] == modes["easy"]["all"]["accuracy"] == 1.0
    normal = modes["normal"]["all"]
    assert normal["accuracy"] > normal["first_accuracy"] + 0.1
    assert normal["repaired"] - normal["spoilt"] == round(72 * (normal["accuracy"] - normal["first_accuracy"]))
    assert normal["honest_verdicts"] == 1.0
    assert normal["thinking"] > modes["easy"]["all"]["thinking"] > modes["none"]["all"]["thinking"] == 0
    assert 0.3 < normal["after_share"] < 0.8


def test_the_hint_shortens_written_traces() -> None:
    hint = facts()["hint"]
    assert 0 < hint["shortening"] < 1
    assert hint["reached"] == 1.0
    assert set(hint["levels"]) == set("123456")


def test_counts_of_a_cell_are_exact() -> None:
    def told(first: str, final: str, tokens: int = 100) -> TraceReading:
        return TraceReading(final, tokens, (Statement(first, 40), Statement(final, 80)))

    readings = [told("1", "1"), told("2", "1"), told("1", "2"), told("3", "2"), TraceReading("1", 100)]
    questions = [Question(str(i), "?", "1", 4, "expr") for i in range(5)]
    found = cell(Run(questions, readings, [50] * 5, [False] * 4 + [True]))
    assert (found["accuracy"], found["first_accuracy"]) == (0.6, 0.6)
    assert (found["repaired"], found["spoilt"], found["helped"], found["harmed"]) == (1, 1, 1, 1)
    assert found["after_share"] == pytest.approx((60 + 20 + 20 + 20) / 500)
    assert found["capped"] == 0.2
    assert cell(Run([], [], [], [])) == {"n": 0}


def planted(success: np.ndarray, prompts: np.ndarray, kinds: Sequence[str]) -> Run:
    questions = [Question(str(i), "?", "1", 1, kind) for i, kind in enumerate(kinds)]
    return Run(questions, [TraceReading("1" if s else "2", 9) for s in success], prompts.tolist(), [False] * len(kinds))


def test_what_length_and_kind_foretell_is_found_and_chance_is_not() -> None:
    rng = np.random.default_rng(0)
    prompts, kinds = rng.integers(40, 90, 400), [str(k) for k in rng.choice(["expr", "story"], 400)]
    by_length = predictable(planted(np.abs(prompts - 65) < 12, prompts, kinds))
    assert by_length["boosting"] > 0.95
    is_expr = np.array([k == "expr" for k in kinds])
    by_both = predictable(planted((prompts > 65) == is_expr, prompts, kinds))
    assert min(by_both.values()) > 0.95
    chance = predictable(planted(rng.random(400) < 0.5, prompts, kinds))
    assert all(0.4 < v < 0.62 for v in chance.values())
    assert predictable(planted(np.ones(400, bool), prompts, kinds)) == {}


@pytest.mark.parametrize("markdown", [False, True])
def test_the_card_is_printed(markdown: bool) -> None:
    text = as_text({"model": "m", "n": 72, "seed": 2, **facts()}, markdown=markdown)
    for part in ("## m", "### none", "### hard", "hard half", "re-checks", "AUROC of success"):
        assert part in text
    assert ("|---" in text.replace(" ", "")) == markdown
