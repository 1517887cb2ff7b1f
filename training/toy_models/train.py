"""Train an embedded reasoning model from scratch: `tersely train tiny --size small|large`.

Muon on the matrices, AdamW on embedding and norms, warm-up / flat / linear decay over a fixed number of tokens,
so that a seed gives the same model on the same machine. Runs write checkpoints, and may have a time limit.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional as F

from ...models import get_model_path
from .batches import Batch, agent_tokenizer, batches, build_tokenizer

if TYPE_CHECKING:
    from transformers import Qwen3ForCausalLM

CLASS_NAMES = ("plain", "slip", "read", "copy", "fast", "careful", "verdict", "choice", "final", "direct")


@dataclass(frozen=True, slots=True)
class ToySize:
    """Shape and schedule of one embedded model; `base` is the model whose weights it starts from."""

    hidden: int
    ffn: int
    layers: int
    heads: int
    head_dim: int
    kv_heads: int
    matrix_lr: float
    other_lr: float
    tokens: int
    batch: int
    base: str | None = None


SIZES = {
    "small": ToySize(128, 320, 4, 2, 64, 2, 5e-3, 4e-3, 5_000_000, 2048),
    "large": ToySize(192, 512, 6, 3, 64, 3, 4e-3, 3e-3, 10_000_000, 2560),
    "agent": ToySize(192, 512, 6, 3, 64, 3, 2.5e-3, 2.5e-3, 14_000_000, 3072, base="tersely-tiny-large"),
}


def build_model(size: ToySize, vocab: int, eos: int, pad: int) -> Qwen3ForCausalLM:
    """A fresh Qwen3 of this size in float32."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=vocab,
        hidden_size=size.hidden,
        intermediate_size=size.ffn,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.kv_heads,
        head_dim=size.head_dim,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        eos_token_id=eos,
        pad_token_id=pad,
        bos_token_id=None,
        dtype="float32",
        architectures=["Qwen3ForCausalLM"],
    )
    config._attn_implementation = "sdpa"
    return Qwen3ForCausalLM(config)


def load_base_weights(base: str, model: Qwen3ForCausalLM) -> None:
    """Copy the weights of an embedded model; new tokens start near the mean of its embeddings."""
    from transformers import Qwen3ForCausalLM

    state = Qwen3ForCausalLM.from_pretrained(get_model_path(base), dtype=torch.float32).state_dict()
    known = state.pop("model.embed_tokens.weight")
    state.pop("lm_head.weight", None)
    model.load_state_dict(state, strict=False)
    with torch.no_grad():
        rows = model.model.embed_tokens.weight
        rows[len(known) :] = known.mean(0) + 0.02 * torch.randn_like(rows[len(known) :])
        rows[: len(known)] = known


def build_optimizers(model: nn.Module, size: ToySize) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks, AdamW for the rest."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if not (p.ndim == 2 and "embed" not in n)]
    return [
        torch.optim.Muon(matrices, lr=size.matrix_lr, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=size.other_lr, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def rate_factor(done: float) -> float:
    """The learning-rate factor at a share of training: warm-up, flat to 45 %, linear to 2 %."""
    if done < 0.01:
        return max(0.02, done / 0.01)
    return 1.0 if done < 0.45 else 1.0 - 0.98 * (done - 0.45) / 0.55


def training_loss(model: Any, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The weighted loss, and for each predicted token whether it was right and its trace class."""
    hidden = model.model(input_ids=batch.ids, use_cache=False).last_hidden_state[:, :-1]
    weights, classes, targets = batch.weights[:, 1:], batch.classes[:, 1:], batch.ids[:, 1:]
    keep = weights > 0
    logits = model.lm_head(hidden[keep]).float()
    losses = F.cross_entropy(logits, targets[keep], reduction="none")
    loss = (losses * weights[keep]).sum() / weights[keep].sum()
    return loss, logits.detach().argmax(-1) == targets[keep], classes[keep]


class LossMeter:
    """Running loss and next-token accuracy by trace class."""

    def __init__(self) -> None:
        self.loss: float | None = None
        self.accuracy: dict[str, float] = {}

    def update(self, loss: float, right: torch.Tensor, classes: torch.Tensor) -> None:
        """Blend in one step."""
        self.loss = loss if self.loss is None else 0.98 * self.loss + 0.02 * loss
        for c in classes.unique().tolist():
            value = right[classes == c].float().mean().item()
            name = CLASS_NAMES[c]
            self.accuracy[name] = 0.98 * self.accuracy.get(name, value) + 0.02 * value


def train(
    size_name: str,
    out: Path,
    seed: int = 0,
    tokens: int | None = None,
    wall_minutes: float = 240.0,
    compile_layers: bool = True,
    report: Callable[[str], None] = print,
) -> Path:
    """Train one model and save it to `out`; resumes from `out/checkpoint.pt` if an earlier run wrote it.

    Raises TimeoutError after `wall_minutes`, with a checkpoint written.
    """
    size = SIZES[size_name]
    goal = tokens or size.tokens
    torch.manual_seed(seed)
    tokenizer = build_tokenizer() if size.base is None else agent_tokenizer(size.base)
    model = build_model(size, len(tokenizer), tokenizer.eos_token_id, tokenizer.pad_token_id)
    if size.base is not None:
        load_base_weights(size.base, model)
    opts = build_optimizers(model, size)
    base_rates = [[group["lr"] for group in opt.param_groups] for opt in opts]
    out.mkdir(parents=True, exist_ok=True)
    checkpoint = out / "checkpoint.pt"
    seen, skip = _load_checkpoint(checkpoint, model, opts)
    step = 0
    if compile_layers:
        for layer in model.model.layers:
            layer.compile(dynamic=True)
    # Emulated, bfloat16 is slower than float32.
    half = torch.cpu.get_capabilities().get("avx512_bf16", False)
    progress, meter, start = [0.0], LossMeter(), time.monotonic()
    replay = 0
    for batch in batches(tokenizer, seed, size.batch, progress, agent=size.base is not None):
        step += 1
        if step <= skip:  # replay the stream up to the checkpoint
            replay += batch.tokens
            progress[0] = replay / goal
            continue
        progress[0] = seen / goal
        for opt, rates in zip(opts, base_rates, strict=True):
            for group, lr in zip(opt.param_groups, rates, strict=True):
                group["lr"] = lr * rate_factor(progress[0])
        meter.update(*_take_step(model, opts, batch, half))
        seen += batch.tokens
        if step % 50 == 0:
            minutes = (time.monotonic() - start) / 60
            accuracy = " ".join(f"{k} {v:.3f}" for k, v in sorted(meter.accuracy.items()))
            report(f"{seen / goal:6.1%} step {step} loss {meter.loss:.4f} {accuracy} | {minutes:.1f} min")
        over = (time.monotonic() - start) / 60 > wall_minutes
        if step % 400 == 0 or over or seen >= goal:
            _save_checkpoint(checkpoint, model, opts, seen, step)
        if over:
            raise TimeoutError(f"stopped after {wall_minutes} minutes at {seen / goal:.0%}; run again to continue")
        if seen >= goal:
            break
    save(model, tokenizer, out, {"size": size_name, "seed": seed, "tokens": seen, "shape": asdict(size)})
    checkpoint.unlink(missing_ok=True)
    return out


def _take_step(
    model: Any, opts: list[torch.optim.Optimizer], batch: Batch, half: bool
) -> tuple[float, torch.Tensor, torch.Tensor]:
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        loss, right, classes = training_loss(model, batch)
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for opt in opts:
        opt.step()
        opt.zero_grad(set_to_none=True)
    return loss.item(), right, classes


def _load_checkpoint(path: Path, model: nn.Module, opts: list[torch.optim.Optimizer]) -> tuple[int, int]:
    """Restore a checkpoint, if there is one; returns the tokens and steps done."""
    if not path.exists():
        return 0, 0
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state["model"])
    for opt, saved in zip(opts, state["opts"], strict=True):
        opt.load_state_dict(saved)
    return state["seen"], state["step"]


def _save_checkpoint(path: Path, model: nn.Module, opts: list[torch.optim.Optimizer], seen: int, step: int) -> None:
    state = {"model": model.state_dict(), "opts": [o.state_dict() for o in opts], "seen": seen, "step": step}
    torch.save(state, path.with_suffix(".tmp"))
    path.with_suffix(".tmp").replace(path)


def save(model: Any, tokenizer: Any, out: Path, recipe: dict[str, Any]) -> None:
    """Write bfloat16 weights, tokenizer, generation defaults and the recipe.

    The config keeps `dtype: float32`: loaders upcast, which is faster on CPUs at this size and independent of batching.
    """
    from safetensors.torch import save_file
    from transformers import GenerationConfig

    model.generation_config = GenerationConfig(
        do_sample=True,
        temperature=0.6,
        top_p=0.95,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model.config.save_pretrained(out)
    model.generation_config.save_pretrained(out)
    state = {
        k: v.detach().to(torch.bfloat16).contiguous() for k, v in model.state_dict().items() if k != "lm_head.weight"
    }
    save_file(state, out / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save_pretrained(out)
    (out / "recipe.json").write_text(json.dumps(recipe, indent=2) + "\n", encoding="utf-8")
