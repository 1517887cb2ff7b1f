"""Learning a hint or a prompt: the embeddings of new tokens, in place of words or before inputs, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import tersely
from tersely.controller.engines.transformers.engine import load_engine
from tersely.controller.policies.hint import BrevityHint, find_learned_hint
from tersely.controller.text.markers import Markers
from tersely.errors import OptionError
from tersely.kernels.quantization import Scheme, W4A8Linear
from tersely.kernels.quantization.calibration import CalibrationText
from tersely.kernels.quantization.run import quantize_checkpoint
from tersely.models import get_model_path
from tersely.training.config import RecipeError, Rollouts
from tersely.training.methods.sft import add_hint_tokens, add_prompt, read_prompt, replace_forced_words
from tersely.training.offline import SampledTrace
from tersely.training.sampling import CompletionRequest, RolloutSampler
from tersely.training.training_run import MODEL, write_model

from ...support.trainings import train

BASE = "tersely-tiny-small"
WORDS = "[Be concise.]\n\n"
PROBLEM = "Kai has 9 shells. Kai finds 31 shells. Count the shells."
OWN: dict[str, Any] = {
    "hint": {"samples": 4, "keep": 2, "strength": 0.5},
    "data": {"efforts": ["easy"]},
    "rollouts": {"max_new_tokens": 150, "policies": {"hint": {"limit": 1}}},
    "optimizer": {"learning_rate": 1e-2, "micro_batch": 2, "lora": None},
}


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    out = tmp_path_factory.mktemp("hint") / "run"
    return out, train("hint", out, **OWN)


def table(folder: Path) -> torch.Tensor:
    weights: torch.Tensor = load_file(folder / "model.safetensors")["model.embed_tokens.weight"]
    return weights.float()


def test_policies_act_in_thinking_that_tersely_opens() -> None:
    engine = load_engine(BASE)
    settings = Rollouts(max_new_tokens=160, thinking_budget=60, policies={"hint": {"earliest": 0, "limit": 1}})
    sampler = RolloutSampler(engine, settings, Markers("Reasoning", "Answer"))
    for made in sampler([CompletionRequest([{"role": "user", "content": PROBLEM}], "easy")] * 3, 0):
        text = engine.tokenizer.decode(made.ids)
        assert text.index("[Be concise.]") < 40, "the policy acts at once"
        assert 0 < made.thinking_tokens <= 60 and "Answer" in text, "long thinking is closed"
        assert not made.forced[0], "the first token is the model's"


@pytest.mark.slow
def test_only_the_new_embeddings_change(taught: tuple[Path, list[str]]) -> None:
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
    assert any(f"{len(words)} embeddings" in line for line in said)


@pytest.mark.slow
def test_strength_scales_the_learned_change(taught: tuple[Path, list[str]]) -> None:
    out, _ = taught
    last = max(out.glob("checkpoint-*"), key=lambda place: int(place.name.partition("-")[2]))
    old, whole, kept = table(get_model_path(BASE)), table(last), table(out / MODEL)
    words = load_engine(BASE).tokenizer.encode(WORDS, add_special_tokens=False)
    moved = whole[len(old) :] - old[words]
    assert moved.abs().max() > 1e-3
    torch.testing.assert_close(kept[len(old) :] - old[words], 0.5 * moved)


@pytest.mark.slow
def test_the_policy_gives_the_learned_hint(taught: tuple[Path, list[str]]) -> None:
    out, _ = taught
    engine = load_engine(str(out / MODEL))
    hint = find_learned_hint(engine.tokenizer)
    done = tersely.generate(engine, prompts=PROBLEM, policies=(BrevityHint(learned=True, limit=1),), temperature=0)
    assert [decision.text.strip() for decision in done.trace if decision.action == "inject"] == [hint]
    assert hint in done.thinking
    assert len(engine.tokenizer.encode(hint, add_special_tokens=False)) == hint.count("<|")
    for preset in ("concise-t", "concisehint-t"):
        assert any(d.action == "inject" for d in tersely.generate(engine, prompts=PROBLEM, preset=preset).trace)


@pytest.mark.slow
def test_untrained_hint_tokens_act_like_their_words(tmp_path: Path) -> None:
    """The tokens stand for all text of the policy; one of them covers the end of the words and of the paragraph."""
    base = load_engine(BASE)
    added = add_hint_tokens(base.model, base.tokenizer, WORDS)
    write_model(base.model, base.tokenizer, tmp_path / MODEL)
    taught, said = load_engine(str(tmp_path / MODEL)), []
    for engine, learnt in ((load_engine(BASE), False), (taught, True)):
        policy = BrevityHint(learned=learnt, limit=1)
        done = tersely.generate(engine, prompts=PROBLEM, policies=(policy,), temperature=0)
        said.append((done.thinking.replace(find_learned_hint(taught.tokenizer), WORDS), done.answer, done.usage.total))
    assert WORDS in said[0][0]
    assert said[0] == said[1], f"tokens {added}"


@pytest.mark.slow
@pytest.mark.parametrize("head", ["keep", "int8"])
def test_a_quantized_model_learns_a_hint(tmp_path: Path, head: str) -> None:
    """Integer weights do not change; a quantized head cannot grow with the embedding table."""
    base, text = load_engine(BASE, device="cpu"), CalibrationText(rows=4, length=32)
    quantize_checkpoint(base.model, base.tokenizer, BASE, tmp_path / "base", Scheme(head=head), text)
    if head == "int8":
        with pytest.raises(RecipeError) as error:
            train("hint", tmp_path / "run", model=str(tmp_path / "base"), **OWN)
        assert error.value.code == "quantized_head"
        return
    train("hint", tmp_path / "run", model=str(tmp_path / "base"), **OWN)
    before, after = (load_file(place / "model.safetensors") for place in (tmp_path / "base", tmp_path / "run" / MODEL))
    assert all(torch.equal(before[name], after[name]) for name in before.keys() - {"model.embed_tokens.weight"})
    old, new = table(tmp_path / "base"), table(tmp_path / "run" / MODEL)
    words = load_engine(BASE).tokenizer.encode(WORDS, add_special_tokens=False)
    assert torch.equal(new[: len(old)], old) and (new[len(old) :] - old[words]).abs().max() > 1e-3
    engine = load_engine(str(tmp_path / "run" / MODEL))
    assert any(isinstance(module, W4A8Linear) for module in engine.model.modules())
    done = tersely.generate(engine, prompts=PROBLEM, policies=(BrevityHint(learned=True, limit=1),), temperature=0)
    assert find_learned_hint(engine.tokenizer) in done.thinking


@pytest.mark.parametrize("preset", ["concise-t", "concisehint-t"])
def test_a_model_without_a_learned_hint_is_refused(preset: str) -> None:
    with pytest.raises(OptionError):
        tersely.generate(BASE, prompts=PROBLEM, preset=preset)


@pytest.mark.parametrize(
    ("sections", "code"),
    [
        ({"rollouts": {"policies": {}}}, "no_hint_policy"),
        ({"optimizer": {"lora": {"rank": 2}}}, "no_lora"),
        ({"optimizer": {"lora": None, "weight_decay": 0.1}}, "no_weight_decay"),
        pytest.param(
            {"rollouts": {"policies": {"hint": {"earliest": 230, "alpha": 500}}}},
            "nothing_to_learn",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_recipes_that_cannot_teach_a_hint_are_refused(sections: dict[str, Any], code: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as error:
        train("hint", tmp_path / "run", **{**OWN, **sections})
    assert error.value.code == code


@pytest.mark.slow
def test_a_second_hint_is_refused(taught: tuple[Path, list[str]], tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as error:
        train("hint", tmp_path / "run", model=str(taught[0] / MODEL), **OWN)
    assert error.value.code == "hint_exists"


# -- a prompt that recovers a compressed model -------------------------------------------------------------------------

RECOVER: dict[str, Any] = {
    "hint": {"objective": "recover", "teacher": BASE, "tokens": 5, "samples": 2},
    "rollouts": {"max_new_tokens": 80},
    "optimizer": {"learning_rate": 1e-2, "micro_batch": 2, "lora": None},
}


@pytest.fixture(scope="module")
def prompted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("prompt") / "run"
    said = train("hint", out, **RECOVER)
    assert any("5 embeddings from 8 completions" in line for line in said), "all of them, right or wrong"
    return out / MODEL


@pytest.mark.slow
def test_a_learned_prompt_precedes_every_input(prompted: Path) -> None:
    before, after = (load_file(place / "model.safetensors") for place in (get_model_path(BASE), prompted))
    assert all(torch.equal(before[name], after[name]) for name in before.keys() - {"model.embed_tokens.weight"})
    old, engine = table(get_model_path(BASE)), load_engine(str(prompted))
    prompt = read_prompt(engine.model, engine.tokenizer)
    assert torch.equal(table(prompted)[: len(old)], old) and prompt.shape == (5, old.shape[1])
    assert torch.cdist(prompt, old).amin(dim=1).min() > 1e-3, "each has moved from where it started in the vocabulary"
    plain, learned = (
        RolloutSampler(one, Rollouts()).prompt_ids([{"role": "user", "content": PROBLEM}], "normal")
        for one in (load_engine(BASE), engine)
    )
    assert list(learned) == [*range(len(old), len(old) + 5), *plain]
    assert not find_learned_hint(engine.tokenizer), "a prompt is no hint"


@pytest.mark.slow
def test_a_learned_prompt_fits_other_models_of_its_shape(prompted: Path) -> None:
    source, other = load_engine(str(prompted)), load_engine(BASE)
    prompt = read_prompt(source.model, source.tokenizer)
    add_prompt(other.model, other.tokenizer, prompt)
    assert torch.equal(read_prompt(other.model, other.tokenizer), prompt)
    texts = [tersely.generate(engine, prompts=PROBLEM, temperature=0).text for engine in (source, other)]
    assert texts[0] == texts[1], "the weights are the same"


@pytest.mark.slow
def test_a_second_prompt_is_refused(prompted: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as error:
        train("hint", tmp_path / "run", model=str(prompted), **RECOVER)
    assert error.value.code == "hint_exists"


@pytest.mark.parametrize("hint", [{"objective": "recover"}, {"objective": "brief", "teacher": BASE}])
def test_an_objective_and_its_teacher_belong_together(hint: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as error:
        train("hint", tmp_path / "run", **{**RECOVER, "hint": hint})
    assert error.value.code == "objective_without_teacher"


@pytest.mark.slow
def test_a_teacher_with_other_tokens_is_refused(prompted: Path, tmp_path: Path) -> None:
    hint = {**RECOVER["hint"], "teacher": str(prompted)}
    with pytest.raises(RecipeError) as error:
        train("hint", tmp_path / "run", **{**RECOVER, "hint": hint})
    assert error.value.code == "other_tokenizer"


def test_only_text_of_a_policy_is_rewritten() -> None:
    tokenizer = load_engine(BASE).tokenizer
    texts = [("A=4+5=9. [Be concise.] ", 1), ("\n[Be concise.]\n\n", 0), ("Wait, ", 1), ("</think>", 0)]
    ids = [(token, mine) for text, mine in texts for token in tokenizer.encode(text, add_special_tokens=False)]
    trace = SampledTrace([1], [token for token, _ in ids], [mine for _, mine in ids], right=True, finished=True)
    found = replace_forced_words(trace, tokenizer, "[Be concise.]", "Short.")
    assert found is not None
    assert tokenizer.decode(found.ids) == "A=4+5=9. [Be concise.] \nShort.\n\nWait, </think>"
    assert len(found.ids) == len(found.loss_mask)
    unwritten = SampledTrace([1], trace.ids, [1] * len(ids), right=True, finished=True)
    assert replace_forced_words(unwritten, tokenizer, "[Be concise.]", "Short.") is None
