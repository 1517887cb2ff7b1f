"""The acceptance check of the embedded models: measurements on written traces, and the criteria."""

from __future__ import annotations

import copy
import importlib.util
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from itertools import islice
from pathlib import Path
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
from tersely.evaluation.runner import load_runner, tokens_until
from tersely.evaluation.tasks.questions import Question
from tersely.evaluation.tasks.toy_problems import Problem, stream
from tersely.training.toy_models.batches import build_tokenizer
from tersely.training.toy_models.traces import respond


def _load() -> Any:
    spec = importlib.util.spec_from_file_location("benchmarks_acceptance", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SCRIPT = Path(__file__).resolve().parents[3] / "benchmarks" / "acceptance.py"
card = _load()
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


def test_a_hint_is_injected_once_at_a_sentence_end() -> None:
    ids = codec().encode(MIND_CHANGED)
    watcher = Controller((card.HintOnce(12),), codec(), MARKERS, TIERS["normal"])
    acted = [(i, d) for i, token in enumerate(ids, 1) if (d := watcher.observe(token)) is not KEEP]
    assert len(acted) == 1
    position, directive = acted[0]
    assert position >= 12
    assert codec().decode(ids[:position]).rstrip("\n").endswith(".")
    assert codec().decode(directive.force).strip() == "[Be concise.]"


def test_vllm_that_is_not_installed_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(CapabilityError):
        load_runner("tersely-tiny-small", "vllm")


# -- reading --------------------------------------------------------------------------------------------------------


def reading(text: str) -> Any:
    return card.read(generation(text), codec())


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
    found = card.read(generation("The answer is \\boxed{7}.", "answer"), codec())
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


# -- measurements -------------------------------------------------------------------------------------------------


class WrittenModel:
    """A model whose generations are written traces: it repairs most slips and is brief once hinted."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = {p.id: p for p in problems}
        self.calls: list[tuple[str, float | None, int]] = []

    def __call__(self, questions: Sequence[Question], options: GenerationOptions) -> list[GenerationResult]:
        self.calls.append((options.effort, options.sampling.temperature, len(questions)))
        rng, mode = Random(3), "hint" if options.policies else options.effort
        results = []
        for question in questions:
            text = respond(self.problems[question.id], mode, rng).text.replace("<|im_end|>", "")
            result = generation(text, "answer" if mode == "none" else "thinking")
            trace = (Decision("hint once", "inject", "", 9),) if options.policies else ()
            results.append(replace(result, trace=trace, usage=replace(result.usage, prompt=rng.randint(40, 80))))
        return results


@cache
def measured() -> dict[str, Any]:
    problems = list(islice(stream("fit", 2), 96))
    questions = [Question(p.id, p.problem, p.answer, p.level, p.kind) for p in problems]
    model = WrittenModel(problems)
    figures: dict[str, Any] = card.measure(model, codec(), questions[:72], questions[72:], greedy=False)
    assert [a[:2] for a in model.calls[:6]] == [
        *((mode, None) for mode in card.MODES),
        ("normal", 0.0),
        ("normal", None),
    ]
    assert [a[2] for a in model.calls] == [72] * 5 + [24] + [12] * 6
    assert figures["predicted"]["n"] == 96
    return figures


def test_measurements_of_written_traces() -> None:
    modes = measured()["modes"]
    assert set(modes) == {*card.MODES, card.GREEDY}
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
    hint = measured()["hint"]
    assert 0 < hint["shortening"] < 1
    assert hint["reached"] == 1.0
    assert set(hint["levels"]) == set("123456")


def test_counts_are_exact() -> None:
    def stating(first: str, final: str, tokens: int = 100) -> Any:
        return card.TraceReading(final, tokens, (card.StatedLine(first, 40), card.StatedLine(final, 80)))

    readings = [stating("1", "1"), stating("2", "1"), stating("1", "2"), stating("3", "2"), card.TraceReading("1", 100)]
    questions = [Question(str(i), "?", "1", 4, "expr") for i in range(5)]
    samples = [card.Sample(q, r, 50, capped=i == 4) for i, (q, r) in enumerate(zip(questions, readings, strict=True))]
    figures = card.summarize(samples)
    assert (figures["accuracy"], figures["first_accuracy"]) == (0.6, 0.6)
    assert (figures["repaired"], figures["spoilt"], figures["helped"], figures["harmed"]) == (1, 1, 1, 1)
    assert figures["after_share"] == pytest.approx((60 + 20 + 20 + 20) / 500)
    assert figures["capped"] == 0.2


def planted(success: np.ndarray, prompts: np.ndarray, kinds: Sequence[str]) -> list[Any]:
    return [
        card.Sample(
            Question(str(i), "?", "1", 1, kind), card.TraceReading("1" if right else "2", 9), int(prompt), False
        )
        for i, (right, prompt, kind) in enumerate(zip(success, prompts, kinds, strict=True))
    ]


def test_success_is_predicted_from_length_and_kind_and_not_from_noise() -> None:
    rng = np.random.default_rng(0)
    prompts, kinds = rng.integers(40, 90, 400), [str(k) for k in rng.choice(["expr", "story"], 400)]
    by_length = card.predict_success(planted(np.abs(prompts - 65) < 12, prompts, kinds))
    assert by_length["boosting"] > 0.95
    is_expr = np.array([k == "expr" for k in kinds])
    by_both = card.predict_success(planted((prompts > 65) == is_expr, prompts, kinds))
    assert min(by_both.values()) > 0.95
    chance = card.predict_success(planted(rng.random(400) < 0.5, prompts, kinds))
    assert all(0.4 < v < 0.62 for v in chance.values())
    assert card.predict_success(planted(np.ones(400, bool), prompts, kinds)) == {}


def test_the_card_as_text() -> None:
    text = card.as_text({"model": "m", "n": 72, "seed": 2, **measured()})
    for part in ("## m", "### none", "### hard", "hard half", "re-checks", "AUROC over 96 problems"):
        assert part in text


# -- criteria -----------------------------------------------------------------------------------------------------


def passing() -> dict[str, Any]:
    base = {"accuracy": 0.5, "first_accuracy": 0.4, "repaired": 30, "spoilt": 5, "after_share": 0.5}
    modes: dict[str, Any] = {m: {"hard half": dict(base), "all": dict(base)} for m in ("normal", "easy", "hard")}
    modes["easy"]["hard half"]["accuracy"] = 0.4
    modes["none"] = {"1": {"accuracy": 0.8}, "6": {"accuracy": 0.05}}
    return {"modes": modes, "hint": {"shortening": 0.4}, "auroc": {"logistic": 0.6, "boosting": 0.7}}


def make_pair() -> tuple[dict[str, Any], dict[str, Any]]:
    small, large = passing(), passing()
    large["modes"]["normal"]["hard half"] |= {"accuracy": 0.7, "first_accuracy": 0.6}
    return small, large


def test_a_good_pair_passes_every_criterion() -> None:
    criteria = card.check_criteria(*make_pair())
    assert len(criteria) == 17
    assert all(c.passed for c in criteria)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("modes", "easy", "hard half", "accuracy"), 0.46),
        (("modes", "normal", "hard half", "first_accuracy"), 0.48),
        (("modes", "normal", "hard half", "spoilt"), 11),
        (("modes", "none", "1", "accuracy"), 0.69),
        (("modes", "none", "6", "accuracy"), 0.11),
        (("modes", "normal", "all", "after_share"), 0.34),
        (("hint", "shortening"), 0.24),
        (("auroc", "boosting"), 0.76),
        (("auroc",), {}),
    ],
)
def test_each_criterion_can_be_missed(path: tuple[str, ...], value: object) -> None:
    small, large = make_pair()
    holder: dict[str, Any] = small
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = copy.copy(value)
    missed = [c for c in card.check_criteria(small, large) if not c.passed]
    assert [c.model for c in missed] == ["small"]


def test_the_gap_of_the_pair_is_a_criterion() -> None:
    small, large = make_pair()
    large["modes"]["normal"]["hard half"]["accuracy"] = 0.64
    assert [c.model for c in card.check_criteria(small, large) if not c.passed] == ["pair"]
