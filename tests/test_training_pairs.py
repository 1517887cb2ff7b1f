"""Pairs of completions: which are made of long and short thinking, and what DPO is given of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch

from tersely.controller.engines.transformers import TransformersEngine, load_engine
from tersely.training.offline import prefer
from tersely.training.pairs import Pair, pairs_of
from tersely.training.running import Running
from tersely.training.traces import Trace

from .trainings import recipe


@pytest.fixture(scope="module")
def engine() -> TransformersEngine:
    return load_engine("tersely-tiny-small")


def trainer_on(pairs: Sequence[Pair], engine: TransformersEngine, folder: Path, watch: pytest.MonkeyPatch) -> Any:
    """The trainer that would learn from these."""
    found: list[Any] = []
    watch.setattr(Running, "train", lambda self, trainer, *rest: found.append(trainer))
    settings = recipe("adar1", folder, optimiser={"micro_batch": 2, "steps": 1})
    prefer(Running(folder, None, print), settings, engine.model, engine.tokenizer, pairs, 0.1)
    return found[0]


@pytest.fixture
def pair(engine: TransformersEngine) -> Pair:
    """A completion in which a tokenizer would find longer words and a merge with the prompt, and one with a hint."""
    said = engine.tokenizer.encode
    prompt = said("How many shells?<think>\n")
    odd = [*said("\n"), *(token for letter in "shells" for token in said(letter)), engine.tokenizer.eos_token_id]
    assert said(engine.tokenizer.decode([*prompt, *odd])) != [*prompt, *odd]
    hinted = said("9 + 3 = 12. Be brief. So 12")
    forced = [1] * 8 + [0] * 3 + [1] * (len(hinted) - 11)
    return Pair("instance", Trace(prompt, odd, [1] * len(odd), True, True), Trace(prompt, hinted, forced, False, False))


def batch_of(trainer: Any) -> dict[str, torch.Tensor]:
    batches: Iterator[dict[str, torch.Tensor]] = iter(trainer.get_train_dataloader())
    return next(batches)


def test_pairs_are_learnt_as_they_were_written(
    pair: Pair, engine: TransformersEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = batch_of(trainer_on([pair] * 2, engine, tmp_path, monkeypatch))
    for row, trace in ((0, pair.chosen), (1, pair.chosen), (2, pair.rejected), (3, pair.rejected)):
        ids = batch["input_ids"][row][batch["attention_mask"][row].bool()].tolist()
        assert ids == [*trace.prompt_ids, *trace.ids], "no other tokens, and no end that the model did not write"


def test_what_was_forced_does_not_count(
    pair: Pair, engine: TransformersEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = trainer_on([pair] * 2, engine, tmp_path, monkeypatch)
    batch = batch_of(trainer)
    for row, trace in ((0, pair.chosen), (2, pair.rejected)):
        counted = batch["completion_mask"][row][batch["attention_mask"][row].bool()].tolist()
        assert counted == [0] * len(trace.prompt_ids) + list(map(int, trace.learnt))


def made(long: str, short: str, least: float) -> dict[str, set[tuple[int, int]]]:
    """By level, the lengths of chosen and rejected. `+` is a right completion, `-` a wrong one, each a token longer
    than that before it, from 100 tokens on where thinking is long, and from 10."""

    def traces(marks: str, shortest: int) -> list[Trace]:
        return [Trace([1], [2] * (shortest + i), [1], mark == "+", True) for i, mark in enumerate(marks)]

    found = pairs_of(traces(long, 100), traces(short, 10), Random(0), groups=9, instances=2, least=least)
    return {
        level: {(p.chosen.length, p.rejected.length) for p in found if p.level == level}
        for level in ("group", "instance")
    }


def test_the_kind_that_is_more_often_right_is_preferred_and_brevity_within_it() -> None:
    assert made("+++-", "++--", 0.0) == {
        "group": {(a, b) for a in (100, 101, 102) for b in (12, 13)},
        "instance": {(100, 103)},
    }
    assert made("++++", "++++", 0.0)["instance"] == {(10, 13), (10, 12)}, "short where it is no worse"
    assert made("++--", "++--", 0.0)["group"] == {(a, b) for a in (10, 11) for b in (102, 103)}, "right before wrong"
    assert made("----", "----", 0.0) == {"group": set(), "instance": set()}


def test_what_is_not_yet_learnt_is_not_learnt_short() -> None:
    nothing = {"group": set(), "instance": set()}
    assert made("+---", "+---", 0.5) == nothing
    assert made("+---", "----", 0.5) == {"group": {(100, b) for b in range(10, 14)}, "instance": set()}
    for long, short in (("++--", "++--"), ("+++-", "++--")):
        assert made(long, short, 0.5) == made(long, short, 0.0) != nothing
