"""Retaining heads: eviction, training and files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import DynamicCache

from tersely.controller.engines.transformers.engine import TransformersEngine, load_engine
from tersely.errors import CapabilityError, ModelError, OptionError
from tersely.kernels.research.retaining import (
    FILE,
    RKV,
    RetainingHeads,
    Scorer,
    load_heads,
    retaining,
    save_heads,
)
from tersely.kernels.research.retaining_fit import (
    LOCRET,
    MIN_DISTANCE,
    OURS,
    collect,
    fit,
    importance,
    retaining_loss,
)

from ..support.models import random_model
from ..support.refusals import refused


@pytest.fixture(scope="module")
def engine() -> TransformersEngine:
    return load_engine("tersely-tiny-small")


@pytest.fixture(scope="module")
def shared_heads() -> Any:
    """A model whose four heads share two keys."""
    return random_model(eos=126)


def batch(model: Any, lengths: tuple[int, ...] = (21, 33, 9)) -> dict[str, Tensor]:
    """Random prompts, padded on the left."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(3, 120, (len(lengths), max(lengths)), generator=generator)
    mask = (torch.arange(max(lengths)) >= max(lengths) - torch.tensor(lengths)[:, None]).long()
    return {"input_ids": ids * mask, "attention_mask": mask}


def by_chance(seed: int) -> Scorer:
    """Scores of two heads that are the same in every layer."""
    table = torch.rand(3, 4096, 2, generator=torch.Generator().manual_seed(seed))
    seen: dict[int, int] = {}

    def score(layer: int, projected: Tensor) -> Tensor:
        start = seen.get(layer, 0)
        seen[layer] = start + projected.shape[1]
        return table[: len(projected), start : seen[layer]]

    return score


@pytest.mark.parametrize("sampled", [False, True], ids=["greedy", "sampled"])
@pytest.mark.parametrize("chunk", [None, 8])
def test_without_eviction_tokens_equal_generate(engine: TransformersEngine, sampled: bool, chunk: int | None) -> None:
    model = engine.model
    inputs, heads = batch(model), RetainingHeads(4, 384, 8, 2)
    plain: dict[str, Any] = {"max_new_tokens": 40, "do_sample": sampled}
    if not sampled:
        plain |= {"temperature": None, "top_p": None}
    torch.manual_seed(5)
    wanted = model.generate(**inputs, **plain)
    torch.manual_seed(5)
    with retaining(model, heads, inputs["input_ids"].shape[1] + 40) as cache:
        found = model.generate(**inputs, **plain, past_key_values=cache, prefill_chunk_size=chunk)
    assert torch.equal(found, wanted)
    assert cache.layers[0].keys.shape[2] == cache.get_seq_length() == found.shape[1] - 1
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_heads_keep_their_own_units(shared_heads: Any) -> None:
    inputs = batch(shared_heads)
    budget, near = 12, 3
    with retaining(shared_heads, by_chance(1), budget, near) as cache, torch.no_grad():
        shared_heads(**inputs, past_key_values=cache, use_cache=True)
        folders = cache.layers[1].positions
        step = torch.tensor([[7], [8], [9]])
        more = torch.cat([inputs["attention_mask"], torch.ones(3, 1, dtype=torch.long)], dim=1)
        at = more.sum(dim=1, keepdim=True) - 1
        found = shared_heads(step, attention_mask=more, position_ids=at, past_key_values=cache, use_cache=True).logits
    table = by_chance(1)(0, torch.empty(3, 33, 1))
    for row, length in enumerate((21, 33, 9)):
        for head in range(2):
            real = range(33 - length, 33)
            first = sorted(real, key=lambda folder: (folder < 33 - near, -table[row, folder, head]))[:budget]
            kept = [folder for folder in folders[row, head].tolist() if folder in real]
            assert kept == sorted(first)
    # The same step on a full cache, with all that was evicted out of sight.
    full = DynamicCache(config=shared_heads.config)
    seen = torch.zeros(3, 2, 1, 34, dtype=torch.bool).scatter(-1, folders[:, :, None], True)
    seen[..., 33] = True
    seen &= more[:, None, None].bool()
    with torch.no_grad():
        shared_heads(**inputs, past_key_values=full, use_cache=True)
        masked = seen.repeat_interleave(2, dim=1)
        wanted = shared_heads(step, attention_mask=masked, position_ids=at, past_key_values=full, use_cache=True).logits
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("near", [0, 5, 16])
def test_the_budget_is_kept_in_chunks_and_steps(engine: TransformersEngine, near: int) -> None:
    inputs = batch(engine.model)
    with retaining(engine.model, by_chance(2), 16, near) as cache:
        out = engine.model.generate(
            **inputs, past_key_values=cache, prefill_chunk_size=8, max_new_tokens=20, min_new_tokens=20
        )
    assert out.shape == (3, 53) and cache.get_seq_length() == 52
    for layer in cache.layers:
        assert layer.keys.shape == layer.values.shape == (3, 2, 16, 64)
        assert (layer.positions.diff(dim=-1) > 0).all()
        newest = layer.positions[..., 16 - near :]
        assert (newest == torch.arange(52 - near, 52)).all()


def test_rkv_evicts_when_its_buffer_is_full(engine: TransformersEngine) -> None:
    inputs, rkv = batch(engine.model), RKV(window=4, buffer=6)
    with retaining(engine.model, rkv, 16) as cache:
        engine.model.generate(
            **inputs, past_key_values=cache, prefill_chunk_size=8, max_new_tokens=30, min_new_tokens=30
        )
    for layer in cache.layers:
        assert layer.queries.shape == (3, 2, 4, 64) and 16 <= layer.keys.shape[2] < 22
        assert (layer.positions[..., -1] == 61).all()
    with refused(OptionError), retaining(engine.model, RKV(), 7):
        pass


def test_rkv_reads_padded_rows_as_if_alone(engine: TransformersEngine) -> None:
    inputs, rkv = batch(engine.model), RKV(window=4, buffer=1)
    plain: dict[str, Any] = {"max_new_tokens": 30, "min_new_tokens": 30, "do_sample": False}
    with retaining(engine.model, rkv, 28) as cache:
        together = engine.model.generate(**inputs, **plain, past_key_values=cache)
    for row, length in enumerate((21, 33, 9)):
        alone = {name: one[row : row + 1, 33 - length :] for name, one in inputs.items()}
        with retaining(engine.model, rkv, 28) as cache:
            found = engine.model.generate(**alone, **plain, past_key_values=cache)
        assert found[0, length:].tolist() == together[row, 33:].tolist()


def test_caches_can_be_indexed_but_not_cropped(engine: TransformersEngine) -> None:
    with retaining(engine.model, by_chance(2), 8) as cache, torch.no_grad():
        engine.model(**batch(engine.model), past_key_values=cache)
        layer = cache.layers[2]
        before = [layer.keys.clone(), layer.positions.clone(), layer.scores.clone()]
        layer.batch_repeat_interleave(2)
        layer.batch_select_indices(torch.tensor([5, 0]))
        after = [layer.keys, layer.positions, layer.scores]
        assert all(torch.equal(new, old[[2, 0]]) for new, old in zip(after, before, strict=True))
        with pytest.raises(CapabilityError):
            cache.crop(-1)


def test_invalid_budgets_and_models_are_refused(engine: TransformersEngine) -> None:
    for budget, near in ((0, None), (-3, None), (4, 5)):
        with refused(OptionError), retaining(engine.model, by_chance(0), budget, near):
            pass
    with pytest.raises(CapabilityError):
        retaining(random_model("sliding"), by_chance(0), 8).__enter__()


def test_importance_by_hand() -> None:
    tokens, generator = MIN_DISTANCE + 4, torch.Generator().manual_seed(1)
    query, key = torch.randn(4, tokens, 8, generator=generator), torch.randn(2, tokens, 8, generator=generator)
    found = {target: importance(query, key, 0.5, target) for target in ("logit", "log_prob")}
    for head in range(2):
        for unit in range(tokens):
            pairs = [(h, q) for h in (2 * head, 2 * head + 1) for q in range(unit + MIN_DISTANCE, tokens)]
            logits = [query[h, :, :] @ key[head].T * 0.5 for h in range(4)]
            wanted = max((logits[h][q, unit].item() for h, q in pairs), default=-torch.inf)
            assert found["logit"][head, unit].item() == pytest.approx(wanted, abs=1e-5)
            chances = [logits[h][q, unit] - logits[h][q, : q + 1].logsumexp(0) for h, q in pairs]
            wanted = max((chance.item() for chance in chances), default=-torch.inf)
            assert found["log_prob"][head, unit].item() == pytest.approx(wanted, abs=1e-5)


def test_training_reduces_the_loss_and_keeps_the_model(engine: TransformersEngine) -> None:
    before, frozen = engine.fingerprint(), engine.model.config._attn_implementation
    texts = [batch(engine.model, (60,))["input_ids"][0].roll(at).tolist() for at in range(4)]
    lessons = [collect(engine.model, text, "log_prob") for text in texts]
    assert lessons[0].projected.shape == (4, 60 - MIN_DISTANCE, 384)
    assert lessons[0].importance.shape == (4, 60 - MIN_DISTANCE, 2) and lessons[0].importance.isfinite().all()
    few = replace(OURS, hidden=16)
    heads = [fit(lessons, steps, settings=few) for steps in (1, 30)]
    first, later = (float(retaining_loss(one, lessons[0])) for one in heads)
    assert later < first / 2
    wanted = torch.stack([torch.cat([one.importance[layer] for one in lessons]) for layer in range(4)])
    with torch.no_grad():
        scores = (torch.cat([heads[1](layer, one.projected[layer]) for one in lessons]) for layer in range(4))
        left = torch.stack(list(scores)) - wanted
    variance = (wanted - wanted.mean(dim=1, keepdim=True)).square().sum(dim=(1, 2))
    assert (left.square().sum(dim=(1, 2)) < 0.7 * variance).all(), "each layer explains 0.3 of the variance"
    again = fit(lessons, 30, settings=few)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), heads[1].parameters(), strict=True))
    assert engine.model.config._attn_implementation == frozen
    assert before == load_engine("tersely-tiny-small").fingerprint()
    assert not any(module._forward_hooks for module in engine.model.modules())


def test_locret_trains_as_the_authors_do(engine: TransformersEngine) -> None:
    lesson = collect(engine.model, batch(engine.model, (60,))["input_ids"][0].tolist())
    heads = fit([lesson], 3, settings=LOCRET)
    assert [name for name, _ in heads.named_parameters() if "bias" in name] == []
    assert heads.shape == (4, 384, 1024, 2)
    with torch.no_grad():
        scores = torch.stack([heads(layer, lesson.projected[layer]) for layer in range(4)])
        fitted = torch.nn.functional.smooth_l1_loss(scores, lesson.importance)
        smooth = sum((one[1:] - one[:-1]).square().mean() for one in scores)
        assert float(retaining_loss(heads, lesson, True)) == pytest.approx(float(fitted + 0.0025 * smooth), rel=1e-4)


def test_locret_evicts_while_the_prompt_is_read(engine: TransformersEngine) -> None:
    prompts = batch(engine.model, (20, 32, 9))
    with retaining(engine.model, by_chance(2), 16, 5, decoding=False) as cache:
        engine.model.generate(
            **prompts, past_key_values=cache, prefill_chunk_size=8, max_new_tokens=20, min_new_tokens=20
        )
    kept = cache.layers[0].positions
    assert kept.shape[-1] == 16 + 19 and (kept[..., 16:] == torch.arange(32, 51)).all()


def test_unusable_training_texts_are_refused(engine: TransformersEngine) -> None:
    with refused(OptionError):
        collect(engine.model, [5] * MIN_DISTANCE)
    with refused(OptionError, "unknown_name"):
        collect(engine.model, [5] * 40, "logits")
    with pytest.raises(OptionError):
        fit([])


@pytest.mark.parametrize("bias", [True, False])
def test_heads_are_saved_and_loaded_for_their_model_only(tmp_path: Path, bias: bool) -> None:
    heads = RetainingHeads(2, 12, 5, 2, bias)
    save_heads(heads, tmp_path / "heads", {"name": "one", "fingerprint": "a" * 64}, {"steps": 3})
    loaded = load_heads(tmp_path / "heads", "a" * 64)
    projected = torch.randn(3, 12)
    assert all(torch.equal(loaded(layer, projected), heads(layer, projected)) for layer in range(2))
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    with refused(ModelError, "heads_of_another_model"):
        load_heads(tmp_path / "heads", "b" * 64)


@pytest.mark.parametrize(
    "facts",
    ["{", "[]", '{"shape": [2, 13, 5, 2], "bias": true, "base": {}}', '{"shape": [2], "bias": true, "base": {}}'],
)
def test_damaged_heads_are_refused(tmp_path: Path, facts: str) -> None:
    save_heads(RetainingHeads(2, 12, 5, 2), tmp_path, {"name": "one", "fingerprint": "a"})
    save_file(load_file(tmp_path / FILE), tmp_path / FILE, {"heads": facts})
    with refused(ModelError, "heads_unusable"):
        load_heads(tmp_path, "a")
    (tmp_path / FILE).write_bytes(b"0" * 99)
    with refused(ModelError, "heads_unusable"):
        load_heads(tmp_path, "a")
    (tmp_path / FILE).unlink()
    with refused(ModelError, "heads_unusable"):
        load_heads(tmp_path, "a")
