"""Quantizing models: the search for scales, calibration, what becomes of a model, and loading it again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    OlmoeConfig,
    OlmoeForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen2Config,
)

from tersely.controller.pretrained import path_of
from tersely.errors import ModelError, OptionError
from tersely.kernels.quantization import Scheme, W4A8Linear, calibration, quantize_model
from tersely.kernels.quantization.calibration import read, watched
from tersely.kernels.quantization.compensation import _fitted, _range, compensate, losses
from tersely.kernels.quantization.config import Search
from tersely.kernels.quantization.linear import quantizable
from tersely.kernels.quantization.model import inputs_of
from tersely.kernels.quantization.scheme import (
    FINE_GRID,
    TwoGrains,
    code_bounds,
    eight_bits,
    input_scale,
    two_grains,
)
from tersely.kernels.quantization.texts import written_by
from tersely.kernels.w4a8_layout import Form

from .models import random_model

SMALL = path_of("tersely-tiny-small")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def text() -> Tensor:
    """Rows that the small model writes."""
    return written_by(load(SMALL), 12, 48, 0)


def load(folder: Path | str, **options: Any) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, **options).eval()


def weight_of(found: TwoGrains, size: int) -> Tensor:
    fine, zero = (t.repeat_interleave(size, 1)[:, : found.codes.shape[1]].float() for t in (found.fine, found.zero))
    return found.channel_scale[:, None] * fine * (found.codes.float() - zero)


@pytest.mark.parametrize(("outputs", "inputs", "size"), [(7, 64, 32), (20, 200, 64), (33, 129, 128), (4, 5, 32)])
def test_codes_and_scales_keep_to_what_is_allowed(outputs: int, inputs: int, size: int) -> None:
    weight = torch.randn(outputs, inputs) * torch.logspace(-3, 3, outputs)[:, None]
    weight[0, 0] = 100
    found = two_grains(weight, size)
    assert found.codes.shape == weight.shape
    assert found.fine.shape == found.zero.shape == (outputs, -(-inputs // size))
    assert found.codes.max() <= 15
    assert found.zero.max() <= 15
    assert found.fine.min() >= 1 and found.fine.max() <= 127
    fine, zero = (t.repeat_interleave(size, 1)[:, :inputs].int() for t in (found.fine, found.zero))
    assert (fine * (found.codes.int() - zero)).abs().max() <= 127
    wrong = (weight_of(found, size) - weight).square().sum() / weight.square().sum()
    assert found.error == pytest.approx(wrong.item(), rel=1e-3)


def test_the_error_is_that_of_the_outputs() -> None:
    x = torch.randn(300, 64) @ torch.randn(64, 64)
    weight = torch.randn(10, 64)
    found = two_grains(weight, 64, (x.T @ x)[None])
    wrong = (x @ (weight_of(found, 64) - weight).T).square().sum() / (x @ weight.T).square().sum()
    assert found.error == pytest.approx(wrong.item(), rel=1e-3)


def test_the_search_finds_better_scales_than_plain_rounding() -> None:
    x = torch.randn(300, 128) * torch.logspace(-1, 1, 128)
    weight = torch.distributions.StudentT(3.0).sample((40, 128))
    gram = torch.stack([part.T @ part for part in x.split(64, dim=1)])
    for given in (None, gram):
        found = two_grains(weight, 64, given)
        assert found.error < 0.95 * found.plain_error
    blind = weight_of(two_grains(weight, 64), 64) - weight
    seeing = weight_of(two_grains(weight, 64, gram), 64) - weight
    assert (x @ seeing.T).square().sum() < 0.9 * (x @ blind.T).square().sum()


@pytest.mark.parametrize(("inputs", "size", "found_by_search"), [(128, 64, 0.88), (150, 64, 0.88), (96, 128, 0.75)])
def test_later_weights_make_up_for_earlier_ones(inputs: int, size: int, found_by_search: float) -> None:
    mixed = torch.randn(inputs, inputs) * torch.logspace(-1, 1, inputs)
    x, weight = torch.randn(2000, inputs) @ mixed, torch.randn(24, inputs)
    weight[5] = 0
    gram, found = x.T @ x, two_grains(weight, size, search=False)
    made, full = compensate(weight, size, gram), compensate(weight, size, gram, search=False)

    def wrong(one: TwoGrains) -> Tensor:
        return (x @ (weight_of(one, size) - weight).T).square().sum(dim=0)

    assert wrong(made).sum() < 0.5 * wrong(found).sum()
    assert (wrong(made) <= wrong(found) * 1.001).all()
    assert made.error == pytest.approx(float(wrong(made).sum() / (x @ weight.T).square().sum()), rel=1e-2)
    assert made.error < 0.5 * made.plain_error
    assert made.error < found_by_search * full.error, "the search of ranges sees what compensation will do"
    assert torch.equal(full.channel_scale, found.channel_scale)
    assert (made.channel_scale != found.channel_scale).sum() > 12
    fine, zero = (t.repeat_interleave(size, 1)[:, :inputs].int() for t in (made.fine, made.zero))
    assert (fine * (made.codes.int() - zero)).abs().max() <= 127
    assert made.codes.max() <= 15 and fine.min() >= 1
    torch.testing.assert_close(losses(weight, size, gram, made), wrong(made), rtol=1e-3, atol=1e-2)
    # Inputs that were never seen, and a few tokens for many inputs: nothing to invert, and nothing that is lost.
    few = x[:3].T @ x[:3]
    few[7] = few[:, 7] = 0
    assert compensate(weight, size, few).error <= float(
        losses(weight, size, few, found).sum() / (weight @ few * weight).sum()
    )
    assert compensate(weight, size, torch.zeros_like(gram)).error == 0
    few[3, 4] = float("nan")
    with pytest.raises(ModelError, match="inputs on the calibration text are NaN"):
        compensate(weight, size, few)


def test_each_part_of_the_search_loses_less() -> None:
    mixed = torch.randn(96, 96) * torch.logspace(-1, 1, 96)
    x, weight = torch.randn(2000, 96) @ mixed, torch.randn(24, 96)
    gram, coarse = x.T @ x, torch.full((24,), 0.02)
    # The scale of an output: a little more or less loses more.
    found = two_grains(weight, 32, search=False)
    codes, fine, zero = found.codes.float(), *(t.repeat_interleave(32, 1).float() for t in (found.fine, found.zero))
    fitted = _fitted(codes, found.channel_scale, fine, zero, weight, gram)

    def cost(scale: Tensor) -> Tensor:
        wrong = (codes - zero) * fine * scale[:, None] - weight
        return ((wrong @ gram) * wrong).sum(1)

    assert (cost(fitted) < torch.minimum(cost(fitted * 1.01), cost(fitted * 0.99))).all()
    assert cost(fitted).sum() < 0.99 * cost(found.channel_scale).sum()
    # A range: of all that are tried it loses least by the sums that it is given.
    part, sums = weight[:, :32], gram[:32, :32]

    def lost(scale: Tensor, shift: Tensor) -> Tensor:
        lowest, highest = code_bounds(scale, shift)
        unit = (scale * coarse)[:, None]
        near = (part / unit).round().add(shift[:, None]).clamp(lowest[:, None], highest[:, None])
        wrong = (near - shift[:, None]) * unit - part
        return ((wrong @ sums) * wrong).sum(1)

    best = lost(*_range(part, sums, coarse, FINE_GRID))
    each = torch.stack([lost(*_range(part, sums, coarse, (ratio,))) for ratio in FINE_GRID])
    torch.testing.assert_close(best, each.amin(0))
    assert (best < 0.99 * lost(*_range(part, torch.eye(32), coarse, FINE_GRID))).sum() > 5, "it is those that decide"


def test_inputs_that_are_known_already() -> None:
    rows, scheme = torch.randint(100, (4, 20)), Scheme(32)
    at_once, before = random_model(), random_model()
    quantize_model(at_once, rows, scheme)
    layers = dict(quantizable(before, scheme))
    given = inputs_of(before, rows, layers, scheme, Search())
    quantize_model(before, scheme=scheme, inputs=given)
    assert torch.equal(at_once(rows).logits, before(rows).logits)
    apart, grouped = random_model(), random_model()
    quantize_model(apart, rows, scheme, Search(compensate=False))
    quantize_model(grouped, None, scheme, Search(compensate=False), inputs=given)
    assert torch.equal(apart(rows).logits, grouped(rows).logits)
    few = {name: one for name, one in given.items() if not name.endswith("q_proj")}
    within = {name: one.within_groups() for name, one in given.items()}
    for wrong, about, message in (
        (few, scheme, "q_proj: none"),
        (within, scheme, "sums in groups of 32"),
        (given, Scheme(64), "groups of 64"),
    ):
        with pytest.raises(OptionError, match=f"{message}.*accepted|accepted.*{message}"):
            quantize_model(random_model(), scheme=about, inputs=wrong)


def test_without_a_search_ranges_are_full() -> None:
    weight = torch.distributions.StudentT(3.0).sample((40, 128))
    found = two_grains(weight, 64, search=False)
    assert found.error == found.plain_error == pytest.approx(two_grains(weight, 64).plain_error)


def test_matrices_that_say_little() -> None:
    zeros = two_grains(torch.zeros(3, 40), 32)
    assert zeros.error == 0
    assert (weight_of(zeros, 32) == 0).all()
    weight = torch.stack((torch.ones(64), -torch.ones(64), torch.zeros(64)))
    weight[2, 5] = 3
    found = two_grains(weight, 32)
    torch.testing.assert_close(weight_of(found, 32), weight, rtol=0.02, atol=0)


def test_eight_bits() -> None:
    weight = torch.randn(50, 30)
    weight[3] = 0
    whole, scale = eight_bits(weight)
    assert whole.dtype == torch.int8
    assert whole.abs().amax(dim=1).tolist() == [0 if row == 3 else 127 for row in range(50)]
    assert ((whole * scale[:, None] - weight).abs() <= scale[:, None] * 0.5001).all()


def test_inputs_that_stand_out_are_brought_down() -> None:
    highest = torch.linspace(1, 2, 1000)
    highest[[3, 500]] = torch.tensor([40.0, 10.0])
    scale = input_scale(highest)
    # The six highest stand out; the height of the sixth is what all keep to.
    assert (scale < 1).sum() == 5
    assert (highest * scale).max().item() == pytest.approx(highest.sort().values[-6].item())
    assert scale[[3, 500]].tolist() == pytest.approx([1.997 / 40, 1.997 / 10], rel=1e-3)
    assert (input_scale(torch.zeros(10)) == 1).all()
    assert (input_scale(torch.tensor([5.0, 1, 1])) == 1).tolist() == [True, True, True]


@pytest.mark.parametrize("whole", [False, True])
def test_what_layers_are_given_is_seen(whole: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "_STRIPE", 48)
    linear, x = nn.Linear(100, 3), torch.randn(4, 5, 100)
    with watched({"a": linear}, 64, whole=whole) as seen:
        linear(x[:2])
        linear(x[2:])
        linear(x[:0])
    linear(torch.full((1, 100), 1e6))  # nobody looks any more

    def products(rows: Tensor) -> Tensor:
        if whole:
            return rows.T @ rows
        padded = torch.nn.functional.pad(rows, (0, 28))
        return torch.stack([part.T @ part for part in padded.split(64, dim=1)])

    alike = x.flatten(0, 1) / x.flatten(0, 1).norm(dim=1, keepdim=True)
    torch.testing.assert_close(seen["a"].sums, products(alike))
    torch.testing.assert_close(seen["a"].highest, x.abs().amax(dim=(0, 1)))
    scale = torch.rand(100) + 0.5
    torch.testing.assert_close(seen["a"].scaled(scale).sums, products(alike * scale))


def test_perplexity_by_hand() -> None:
    model, rows = random_model(), torch.randint(3, 100, (3, 9))
    with torch.no_grad():
        logits = model(input_ids=rows).logits[:, :-1].log_softmax(-1)
    expected = (-logits.gather(2, rows[:, 1:, None]).mean()).exp().item()
    assert read(model, rows) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    "scheme", [Scheme(64), Scheme(128, "int8", True), Scheme(32, "int4"), Scheme(64, "keep", True)], ids=str
)
def test_a_quantized_model_says_nearly_the_same(scheme: Scheme, text: Tensor) -> None:
    model = load(SMALL)
    before = read(model, text[:4])
    done = quantize_model(model, text[4:], scheme)
    assert read(model, text[:4]) < 1.25 * before
    kinds = {name: type(m) for name, m in model.named_modules() if name.endswith(("proj", "head"))}
    assert set(kinds.values()) == {W4A8Linear} | ({nn.Linear} if scheme.head == "keep" else set())
    assert {layer["bits"] for layer in done.layers} == ({4, 8} if scheme.head in ("preview", "int8") else {4})
    assert len(done.layers) == 28 + (scheme.head != "keep")
    assert all(0 < layer["error"] < 0.05 for layer in done.layers)
    assert all(layer["error"] <= layer.get("error of plain rounding", 1) for layer in done.layers)
    # Embeddings in float32 are an eighth of the weights, and the head is no longer shared with them.
    assert done.bytes_after < 0.4 * done.bytes_before


def test_without_text_no_input_is_scaled() -> None:
    model = load(SMALL)
    done = quantize_model(model, None, Scheme(smooth=True))
    assert {layer["scaled inputs"] for layer in done.layers} == {0}
    assert isinstance(model.lm_head, W4A8Linear)
    assert model.lm_head.form is Form.PLANES
    assert "8-bit weights in two planes" in repr(model.lm_head)


def test_a_head_in_planes_holds_what_one_of_bytes_does(text: Tensor) -> None:
    planes, whole = load(SMALL), load(SMALL)
    quantize_model(planes, None, Scheme())
    quantize_model(whole, None, Scheme(head="int8"))
    assert torch.equal(planes.lm_head.dequantized(), whole.lm_head.dequantized())
    assert read(planes, text[:4]) == pytest.approx(read(whole, text[:4]), rel=2e-3)


@pytest.mark.parametrize(("keys", "wanted"), [("auto", Form.BYTES), ("int8", Form.BYTES), ("int4", Form.GRAINS)])
def test_shared_keys_have_eight_bits(keys: str, wanted: Form) -> None:
    config = Qwen2Config(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    model: Any = AutoModelForCausalLM.from_config(config)
    own = {name: layer.weight.detach().clone() for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}
    quantize_model(model, None, Scheme(32, keys=keys))
    attention = model.model.layers[0].self_attn
    assert (attention.k_proj.form, attention.v_proj.form) == (wanted, wanted)
    assert (attention.q_proj.form, attention.o_proj.form) == (Form.GRAINS, Form.GRAINS)
    off = {n: (m.dequantized() - own[n]).norm() / own[n].norm() for n, m in model.named_modules() if n in own}
    assert (off["model.layers.0.self_attn.k_proj"] < 0.01) == (wanted is Form.BYTES)


def test_saved_and_loaded_again(tmp_path: Path) -> None:
    sizes: Any = {"vocab_size": 100, "hidden_size": 72, "intermediate_size": 90, "num_hidden_layers": 2}
    # Queries, keys and values of this one have biases, and no size is a whole number of groups or tiles.
    config = Qwen2Config(**sizes, num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=True)
    model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter)
    rows = torch.randint(100, (4, 20))
    quantize_model(model, rows, Scheme(32, smooth=True))
    model.save_pretrained(tmp_path / "a")
    again = load(tmp_path / "a")
    assert again.dtype == torch.bfloat16
    assert not again.config.tie_word_embeddings
    ours, theirs = model.state_dict(), again.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(t, theirs[name]) and t.dtype == theirs[name].dtype for name, t in ours.items())
    assert theirs["model.layers.0.self_attn.q_proj.channel_scale"].dtype == torch.float32
    with torch.no_grad():
        assert torch.equal(model(rows).logits, again(rows).logits)
    again.save_pretrained(tmp_path / "b")
    assert (tmp_path / "b" / "config.json").read_text() == (tmp_path / "a" / "config.json").read_text()


def test_models_that_cannot_be_quantized() -> None:
    twice = random_model()
    quantize_model(twice)
    with pytest.raises(ModelError, match=r"quantized already \(tersely_w4a8\)"):
        quantize_model(twice)
    sizes: Any = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    experts = OlmoeForCausalLM(OlmoeConfig(**sizes, num_attention_heads=2, num_experts=8, pad_token_id=0))
    with pytest.raises(ModelError, match="of the weights are in linear layers; accepted"):
        quantize_model(experts)
    broken = random_model()
    broken.model.layers[0].mlp.up_proj.weight.data[3, 3] = torch.nan
    with pytest.raises(ModelError, match=r"layer model.layers.0.mlp.up_proj has weights that are NaN"):
        quantize_model(broken)
    scaled = random_model()
    scaled.config.logits_scaling = 8.0
    with pytest.raises(ModelError, match=r"logits_scaling.*accepted: --head int8, int4 or keep"):
        quantize_model(scaled)
    quantize_model(scaled, scheme=Scheme(head="int8"))
    with pytest.raises(OptionError, match="groups of 48 inputs; accepted: 32, 64, 128"):
        Scheme(48)
    with pytest.raises(OptionError, match="did you mean 'int8'"):
        Scheme(head="int9")
    with pytest.raises(OptionError, match="did you mean 'int4'"):
        Scheme(keys="in4")
    fused = Phi3ForCausalLM(Phi3Config(**sizes, num_attention_heads=2, pad_token_id=0))
    with pytest.raises(ModelError, match="no layer is called k_proj or v_proj"):
        quantize_model(fused, scheme=Scheme(keys="int8"))
