"""The text that the embedded models learn from, and a training run that is stopped and resumed."""

from __future__ import annotations

import re
from collections import Counter
from functools import cache
from itertools import islice
from pathlib import Path
from random import Random

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from tersely.controller.text.answers import extract_boxed, extract_stated_answer
from tersely.errors import TerselyError
from tersely.evaluation.tasks.toy_problems import Problem, stream
from tersely.training.toy_models.batches import WEIGHTS, batches, build_tokenizer, encode
from tersely.training.toy_models.traces import DIRECT, FINAL, HINTS, RESPONSES, SLIP, respond
from tersely.training.toy_models.train import train


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer(300)


def problems(n: int = 120) -> list[Problem]:
    return list(islice(stream("fit", 4), n))


def last_stated(thinking: str) -> str | None:
    found = [answer for line in thinking.splitlines() if (answer := extract_stated_answer(line)) is not None]
    return found[-1] if found else None


@pytest.mark.parametrize("mode", ["easy", "normal", "hard", "hint"])
def test_the_answer_is_the_last_one_stated(mode: str) -> None:
    rng = Random(0)
    right = 0
    for problem in problems():
        thinking, _, answer = respond(problem, mode, rng).text.partition("</think>")
        assert extract_boxed(answer) == last_stated(thinking)
        right += extract_boxed(answer) == problem.answer
    assert right == 120 if mode == "easy" else right > 110


def test_lines_are_computed_right_except_planted_slips() -> None:
    rng, wrong, lines = Random(0), 0, 0
    for problem in problems():
        for left, op, right, result in re.findall(
            r"=(\d+)([-+*])(\d+)(?::[^\n]*?=>|=)(\d+)\.\n", respond(problem, "normal", rng).text
        ):
            lines += 1
            wrong += max(0, eval(left + op + right)) != int(result)
    assert lines > 1000
    assert 0.01 < wrong / lines < 0.1


def test_brief_thinking_checks_once_at_most() -> None:
    rng = Random(0)
    counts = {
        brief: Counter(respond(p, "normal", rng, brief).text.count("Now ") for p in problems())
        for brief in (True, False)
    }
    assert set(counts[True]) == {1}
    assert counts[False][2] + counts[False][3] > 80


def test_after_a_hint_the_pass_is_finished_and_checked_once() -> None:
    rng = Random(0)
    for problem in problems():
        whole = respond(problem, "hint", rng).text
        (start,) = [whole.index(f"[{hint}]") for hint in HINTS if f"[{hint}]" in whole]
        assert whole[start:].count("Now ") <= 2
        assert "=>" in whole or problem.level <= 2, "a careful pass confirms the answer"


def test_cut_thinking_answers_with_the_last_stated_answer() -> None:
    rng, without = Random(0), 0
    for problem in problems():
        thinking, _, answer = respond(problem, "cut", rng).text.partition("</think>")
        stated = last_stated(thinking)
        without += stated is None
        assert extract_boxed(answer) == (stated or problem.answer)
    assert 0 < without < 100


def test_every_token_has_the_class_of_its_text() -> None:
    rng = Random(0)
    for problem, mode in zip(problems(60), list(RESPONSES) * 10, strict=True):
        ids, tags = encode(tokenizer(), problem, mode, rng)
        start = sum(tag == -1 for tag in tags)
        assert set(tags[:start]) == {-1} and -1 not in tags[start:]
        final = tokenizer().decode([i for i, t in zip(ids, tags, strict=True) if t in (FINAL, DIRECT)])
        assert final == (extract_boxed(tokenizer().decode(ids[start:])) if mode != "cut" else final)
    assert WEIGHTS[SLIP] == 0


def test_batches_depend_only_on_the_seed() -> None:
    def first(seed: int) -> list[torch.Tensor]:
        return [batch.ids for batch in islice(batches(tokenizer(), seed, 1024, [0.3]), 3)]

    assert all(map(torch.equal, first(1), first(1)))
    assert not all(a.shape == b.shape and torch.equal(a, b) for a, b in zip(first(1), first(2), strict=True))


@pytest.mark.slow
def test_a_stopped_run_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tersely.training.toy_models.train.build_tokenizer", tokenizer)
    options = {"seed": 0, "tokens": 4_000, "compile_layers": False, "report": lambda line: None}
    with pytest.raises(TerselyError) as error:
        train("small", tmp_path, wall_minutes=0.0, **options)  # type: ignore[arg-type]
    assert error.value.code == "out_of_time"
    assert (tmp_path / "checkpoint.pt").is_file()
    train("small", tmp_path, **options)  # type: ignore[arg-type]
    assert not (tmp_path / "checkpoint.pt").exists()
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad():
        assert model(torch.tensor([[5, 6, 7]])).logits.isfinite().all()
