"""A learnt hint: embeddings of tokens of its own, which the hint policy sets in place of words; all else as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import tersely
from tersely.controller.engines.transformers.engine import load_engine
from tersely.controller.policies.hint import ConciseHint, learnt_hint
from tersely.controller.text.markers import Markers
from tersely.errors import OptionError
from tersely.kernels.quantization import Scheme, W4A8Linear
from tersely.kernels.quantization.calibration_text import CalibrationText
from tersely.kernels.quantization.run import quantize_checkpoint
from tersely.models import get_model_path
from tersely.training.config import RecipeError, Rollouts
from tersely.training.embeddings import add_tokens
from tersely.training.sampling import CompletionRequest, Sampler
from tersely.training.saving import MODEL, write_model
from tersely.training.traces import SampledTrace, to_rewritten

from ...support.trainings import train

BASE = "tersely-tiny-small"
WORDS = "[Be concise.]\n\n"
PROBLEM = "Kai has 9 shells. Kai finds 31 shells. Kai makes 3 times the shells. Count the shells."
OWN: dict[str, Any] = {
    "hint": {"samples": 4, "keep": 2, "strength": 0.5},
    "rollouts": {"max_new_tokens": 400, "policies": {"hint": {"limit": 1}}},
    "optimiser": {"learning_rate": 1e-2, "micro_batch": 2, "lora": None},
}


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    out = tmp_path_factory.mktemp("hint") / "run"
    return out, train("hint", out, **OWN)


def table(folder: Path) -> torch.Tensor:
    weights: torch.Tensor = load_file(folder / "model.safetensors")["model.embed_tokens.weight"]
    return weights.float()


def test_policies_act_where_the_thinking_is_opened_for_the_model() -> None:
    engine = load_engine(BASE)
    settings = Rollouts(max_new_tokens=160, thinking_budget=60, policies={"hint": {"earliest": 0, "limit": 1}})
    sampler = Sampler(engine, settings, Markers("Reasoning", "Answer"))
    for made in sampler([CompletionRequest([{"role": "user", "content": PROBLEM}], "easy")] * 3, 0):
        text = engine.tokenizer.decode(made.ids)
        assert text.index("[Be concise.]") < 40, "the policy acts at once"
        assert 0 < made.thinking_tokens <= 60 and "Answer" in text, "what does not end is ended"
        assert not made.forced[0], "the first token is the model's"


def test_embeddings_are_learnt_and_nothing_else(taught: tuple[Path, list[str]]) -> None:
    out, said = taught
    before, after = (load_file(place / "model.safetensors") for place in (get_model_path(BASE), out / MODEL))
    assert before.keys() == after.keys()
    for name in before.keys() - {"model.embed_tokens.weight"}:
        assert torch.equal(before[name].float(), after[name].float()), name
    old, new = table(get_model_path(BASE)), table(out / MODEL)
    assert torch.equal(new[: len(old)], old)
    words = load_engine(BASE).tokenizer.encode(WORDS, add_special_tokens=False)
    assert len(new) == len(old) + len(words)
    assert (new[len(old) :] - old[words]).abs().amin(dim=1).max() > 0
    assert any(f"learns {len(words)} embeddings" in line for line in said)


def test_strength_keeps_a_share_of_what_was_learnt(taught: tuple[Path, list[str]]) -> None:
    out, _ = taught
    last = max(out.glob("checkpoint-*"), key=lambda place: int(place.name.partition("-")[2]))
    old, whole, kept = table(get_model_path(BASE)), table(last), table(out / MODEL)
    words = load_engine(BASE).tokenizer.encode(WORDS, add_special_tokens=False)
    moved = whole[len(old) :] - old[words]
    assert moved.abs().max() > 1e-3
    torch.testing.assert_close(kept[len(old) :] - old[words], 0.5 * moved)


def test_the_policy_sets_the_learnt_hint(taught: tuple[Path, list[str]]) -> None:
    out, _ = taught
    engine = load_engine(str(out / MODEL))
    hint = learnt_hint(engine.tokenizer)
    done = tersely.generate(engine, prompts=PROBLEM, policies=(ConciseHint(learnt=True, limit=1),), temperature=0)
    assert [decision.text.strip() for decision in done.trace if decision.action == "inject"] == [hint]
    assert hint in done.thinking
    assert len(engine.tokenizer.encode(hint, add_special_tokens=False)) == hint.count("<|")
    for preset in ("concise-t", "concisehint-t"):
        assert any(d.action == "inject" for d in tersely.generate(engine, prompts=PROBLEM, preset=preset).trace)


def test_one_that_has_learnt_nothing_is_what_its_words_are(tmp_path: Path) -> None:
    """Tokens stand for all that the policy writes: one token is the end of the words and of the paragraph."""
    base = load_engine(BASE)
    added = add_tokens(base.model, base.tokenizer, WORDS)
    write_model(base.model, base.tokenizer, tmp_path / MODEL)
    taught, said = load_engine(str(tmp_path / MODEL)), []
    for engine, learnt in ((load_engine(BASE), False), (taught, True)):
        policy = ConciseHint(learnt=learnt, limit=1)
        done = tersely.generate(engine, prompts=PROBLEM, policies=(policy,), temperature=0)
        said.append((done.thinking.replace(learnt_hint(taught.tokenizer), WORDS), done.answer, done.usage.total))
    assert WORDS in said[0][0]
    assert said[0] == said[1], f"tokens {added}"


@pytest.mark.parametrize("head", ["keep", "int8"])
def test_a_quantized_model_learns_one(tmp_path: Path, head: str) -> None:
    """Its whole numbers stay as they are; a head of whole numbers cannot take tokens that the table has no room for."""
    quantize_checkpoint(
        str(get_model_path(BASE)), tmp_path / "base", Scheme(head=head), CalibrationText(rows=4, length=32)
    )
    if head == "int8":
        with pytest.raises(RecipeError, match="quantize the model with --head keep"):
            train("hint", tmp_path / "run", model=str(tmp_path / "base"), **OWN)
        return
    train("hint", tmp_path / "run", model=str(tmp_path / "base"), **OWN)
    before, after = (load_file(place / "model.safetensors") for place in (tmp_path / "base", tmp_path / "run" / MODEL))
    assert all(torch.equal(before[name], after[name]) for name in before.keys() - {"model.embed_tokens.weight"})
    old, new = table(tmp_path / "base"), table(tmp_path / "run" / MODEL)
    words = load_engine(BASE).tokenizer.encode(WORDS, add_special_tokens=False)
    assert torch.equal(new[: len(old)], old) and (new[len(old) :] - old[words]).abs().max() > 1e-3
    engine = load_engine(str(tmp_path / "run" / MODEL))
    assert any(isinstance(module, W4A8Linear) for module in engine.model.modules())
    done = tersely.generate(engine, prompts=PROBLEM, policies=(ConciseHint(learnt=True, limit=1),), temperature=0)
    assert learnt_hint(engine.tokenizer) in done.thinking


@pytest.mark.parametrize("preset", ["concise-t", "concisehint-t"])
def test_a_model_that_has_learnt_none_is_refused(preset: str) -> None:
    with pytest.raises(OptionError, match="has learnt no hint; `tersely train hint` teaches it one"):
        tersely.generate(BASE, prompts=PROBLEM, preset=preset)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"rollouts": {"policies": {}}}, "rollouts.policies has no hint to learn from"),
        ({"optimiser": {"lora": {"rank": 2}}}, "optimiser.lora trains weights"),
        ({"optimiser": {"lora": None, "weight_decay": 0.1}}, "optimiser.weight_decay would wear down"),
        ({"rollouts": {"policies": {"hint": {"earliest": 390, "alpha": 500}}}}, "and was given a hint; set the hint"),
    ],
)
def test_recipes_that_cannot_teach_one(sections: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=message):
        train("hint", tmp_path / "run", **{**OWN, **sections})


def test_a_hint_is_learnt_once(taught: tuple[Path, list[str]], tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="has learnt a hint already"):
        train("hint", tmp_path / "run", model=str(taught[0] / MODEL), **OWN)


def test_only_what_a_policy_wrote_is_rewritten() -> None:
    tokenizer = load_engine(BASE).tokenizer
    texts = [("A=4+5=9. [Be concise.] ", 1), ("\n[Be concise.]\n\n", 0), ("Wait, ", 1), ("</think>", 0)]
    ids = [(token, mine) for text, mine in texts for token in tokenizer.encode(text, add_special_tokens=False)]
    trace = SampledTrace([1], [token for token, _ in ids], [mine for _, mine in ids], right=True, whole=True)
    found = to_rewritten(trace, tokenizer, "[Be concise.]", "Short.")
    assert found is not None
    assert tokenizer.decode(found.ids) == "A=4+5=9. [Be concise.] \nShort.\n\nWait, </think>"
    assert len(found.ids) == len(found.learnt)
    unwritten = SampledTrace([1], trace.ids, [1] * len(ids), right=True, whole=True)
    assert to_rewritten(unwritten, tokenizer, "[Be concise.]", "Short.") is None
