"""DPO on pairs of token ids, and AdaR1's pairs of long and short thinking."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import deepcopy
from pathlib import Path
from random import Random
from unittest.mock import Mock

import pytest
import torch

from tersely.controller.engines.transformers.engine import TransformersEngine, load_engine
from tersely.training.methods.adar1 import make_pairs
from tersely.training.offline import PreferencePair, SampledTrace
from tersely.training.research.mahdpo import build_headed_trainer
from tersely.training.sampling import RolloutSampler

from ..support.trainings import make_recipe, make_run


@pytest.fixture(scope="module")
def engine() -> TransformersEngine:
    return load_engine("tersely-tiny-small")


@pytest.fixture
def pairs(engine: TransformersEngine) -> list[PreferencePair]:
    """Completions that would be tokenized differently from their text, and some with a hint."""

    def pair(question: str, word: str, hinted: str, hint: int) -> PreferencePair:
        said = engine.tokenizer.encode
        prompt = said(f"{question}<think>\n")
        odd = [*said("\n"), *(token for letter in word for token in said(letter)), engine.tokenizer.eos_token_id]
        assert said(engine.tokenizer.decode([*prompt, *odd])) != [*prompt, *odd]
        other = said(hinted)
        own = [1] * hint + [0] * 3 + [1] * (len(other) - hint - 3)
        return PreferencePair(
            "instance",
            SampledTrace(prompt, odd, [1] * len(odd), True, True),
            SampledTrace(prompt, other, own, False, False),
        )

    return [
        pair("How many shells?", "shells", "9 + 3 = 12. Be brief. So 12", 8),
        pair("How many shells does Kai find?", "find", "Be brief. 5", 0),
    ]


@pytest.fixture(params=["one head", "several heads"])
def batch(
    request: pytest.FixtureRequest, pairs: list[PreferencePair], engine: TransformersEngine, tmp_path: Path
) -> dict[str, torch.Tensor]:
    """The first batch of a trainer for these pairs, whose tokenizer has no padding."""
    from tersely.training.offline import build_dpo_trainer, schedule_examples

    tokenizer = deepcopy(engine.tokenizer)
    tokenizer.pad_token = None
    name = "adar1" if request.param == "one head" else "mahdpo"
    recipe = make_recipe(name, tmp_path, optimizer={"micro_batch": 2, "steps": 1})
    run = make_run(recipe, RolloutSampler(engine, recipe.rollouts))
    if name == "adar1":
        examples = schedule_examples([pair.to_example() for pair in pairs], recipe)
        trainer = build_dpo_trainer(run, engine.model, tokenizer, examples, beta=0.1, nll_weight=1.0)
    else:
        trainer = build_headed_trainer(run, engine.model, tokenizer, [pairs], Mock())
    batches: Iterator[dict[str, torch.Tensor]] = iter(trainer.get_train_dataloader())
    return next(batches)


def rows(batch: dict[str, torch.Tensor], column: str) -> list[list[int]]:
    """A column without its padding, sorted."""
    kept = zip(batch[column], batch["attention_mask"].bool(), strict=True)
    return sorted(row[mask].tolist() for row, mask in kept)


def traces(pairs: Sequence[PreferencePair]) -> list[SampledTrace]:
    return [trace for pair in pairs for trace in (pair.chosen, pair.rejected)]


def test_pairs_are_learned_as_token_ids(batch: dict[str, torch.Tensor], pairs: list[PreferencePair]) -> None:
    # The same tokens, without an end that the model did not write.
    assert rows(batch, "input_ids") == sorted([*t.prompt_ids, *t.ids] for t in traces(pairs))


def test_forced_tokens_are_masked(batch: dict[str, torch.Tensor], pairs: list[PreferencePair]) -> None:
    wanted = sorted([0] * len(t.prompt_ids) + t.loss_mask for t in traces(pairs))
    assert rows(batch, "completion_mask") == wanted
    assert batch["completion_mask"].sum() == sum(sum(t.loss_mask) for t in traces(pairs)), "padding does not count"


def made(long: str, short: str, least: float) -> dict[str, set[tuple[int, int]]]:
    """By level, the lengths of chosen and rejected. `+` is a right completion, `-` a wrong one, each a token longer
    than that before it, from 100 tokens on where thinking is long, and from 10."""

    def traces(marks: str, shortest: int) -> list[SampledTrace]:
        return [SampledTrace([1], [2] * (shortest + i), [1], mark == "+", True) for i, mark in enumerate(marks)]

    found = make_pairs(traces(long, 100), traces(short, 10), Random(0), groups=9, instances=2, min_accuracy=least)
    return {
        level: {(p.chosen.length, p.rejected.length) for p in found if p.level == level}
        for level in ("group", "instance")
    }


def test_the_more_accurate_kind_is_preferred_and_brevity_within_it() -> None:
    assert made("+++-", "++--", 0.0) == {
        "group": {(a, b) for a in (100, 101, 102) for b in (12, 13)},
        "instance": {(100, 101), (100, 102)},
    }
    assert made("++++", "++++", 0.0)["instance"] == {(10, 13), (10, 12)}, "short where it is no worse"
    assert made("++--", "++--", 0.0)["group"] == {(a, b) for a in (10, 11) for b in (102, 103)}, "right before wrong"
    assert made("----", "----", 0.0) == {"group": set(), "instance": set()}


def test_questions_not_learned_yet_are_not_learned_short() -> None:
    nothing: dict[str, set[tuple[int, int]]] = {"group": set(), "instance": set()}
    assert made("+---", "+---", 0.5) == nothing
    assert made("+---", "----", 0.5) == {"group": {(100, b) for b in range(10, 14)}, "instance": set()}
    for long, short in (("++--", "++--"), ("+++-", "++--")):
        assert made(long, short, 0.5) == made(long, short, 0.0) != nothing
