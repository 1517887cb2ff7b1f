"""Train an embedded reasoning model from scratch: `tersely train tiny --size small|large`.

Muon on the matrices, AdamW on the rest, over a fixed number of tokens; a seed gives the same model on one machine.
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

from ...errors import TerselyError, check_known
from ...models import get_model_path
from .batches import Batch, agent_tokenizer, batches, build_tokenizer

if TYPE_CHECKING:
    from transformers import Qwen3ForCausalLM


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
    matrices, others = list[nn.Parameter](), list[nn.Parameter]()
    for name, weight in model.named_parameters():
        (matrices if weight.ndim == 2 and "embed" not in name else others).append(weight)
    return [
        torch.optim.Muon(matrices, lr=size.matrix_lr, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=size.other_lr, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def rate_factor(done: float) -> float:
    """The learning-rate factor at a share of training: warm-up, flat to 45 %, linear to 2 %."""
    if done < 0.01:
        return max(0.02, done / 0.01)
    return 1.0 if done < 0.45 else 1.0 - 0.98 * (done - 0.45) / 0.55


def train(
    size_name: str,
    out: Path,
    seed: int = 0,
    tokens: int | None = None,
    wall_minutes: float = 240.0,
    compile_layers: bool = True,
    report: Callable[[str], None] = print,
) -> Path:
    """Train one model, or resume, and save it to `out`; raises TerselyError after `wall_minutes`, with a checkpoint."""
    check_known("--size", size_name, SIZES)
    size = SIZES[size_name]
    goal = tokens or size.tokens
    torch.manual_seed(seed)
    tokenizer = build_tokenizer() if size.base is None else agent_tokenizer(size.base)
    model = build_model(size, len(tokenizer), tokenizer.eos_token_id, tokenizer.pad_token_id)
    if size.base is not None:
        load_base_weights(size.base, model)
    opts = build_optimizers(model, size)
    out.mkdir(parents=True, exist_ok=True)
    checkpoint = out / "checkpoint.pt"
    done = _load_checkpoint(checkpoint, model, opts)
    if compile_layers:
        for layer in model.model.layers:
            layer.compile(dynamic=True)
    # Emulated, bfloat16 is slower than float32.
    half = torch.cpu.get_capabilities().get("avx512_bf16", False)
    progress, start, seen = [0.0], time.monotonic(), 0
    for step, batch in enumerate(batches(tokenizer, seed, size.batch, progress, agent=size.base is not None), 1):
        progress[0] = seen / goal
        seen += batch.ids.numel()
        if step <= done:
            continue
        for opt, rate in zip(opts, (size.matrix_lr, size.other_lr), strict=True):
            opt.param_groups[0]["lr"] = rate * rate_factor(progress[0])
        loss = _take_step(model, opts, batch, half)
        minutes = (time.monotonic() - start) / 60
        if step % 50 == 0:
            report(f"{seen / goal:6.1%} step {step} loss {loss:.4f} | {minutes:.1f} min")
        over = minutes > wall_minutes
        if step % 400 == 0 or over or seen >= goal:
            _save_checkpoint(checkpoint, model, opts, step)
        if over:
            message = f"stopped after {wall_minutes} minutes at {seen / goal:.0%}; run again to continue"
            raise TerselyError(message, code="out_of_time")
        if seen >= goal:
            break
    save(model, tokenizer, out, {"size": size_name, "seed": seed, "tokens": seen, "shape": asdict(size)})
    checkpoint.unlink(missing_ok=True)
    return out


def _take_step(model: Any, opts: list[torch.optim.Optimizer], batch: Batch, half: bool) -> float:
    """Learn the predicted tokens by their weights; returns the mean loss."""
    weights, targets = batch.weights[:, 1:], batch.ids[:, 1:]
    keep = weights > 0
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        hidden = model.model(input_ids=batch.ids, use_cache=False).last_hidden_state[:, :-1]
        losses = F.cross_entropy(model.lm_head(hidden[keep]).float(), targets[keep], reduction="none")
        loss = (losses * weights[keep]).sum() / weights[keep].sum()
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for opt in opts:
        opt.step()
        opt.zero_grad(set_to_none=True)
    return loss.item()


def _load_checkpoint(path: Path, model: nn.Module, opts: list[torch.optim.Optimizer]) -> int:
    """Restore a checkpoint, if there is one; returns the steps done."""
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state["model"])
    for opt, saved in zip(opts, state["opts"], strict=True):
        opt.load_state_dict(saved)
    return int(state["step"])


def _save_checkpoint(path: Path, model: nn.Module, opts: list[torch.optim.Optimizer], step: int) -> None:
    state = {"model": model.state_dict(), "opts": [o.state_dict() for o in opts], "step": step}
    torch.save(state, path.with_suffix(".tmp"))
    path.with_suffix(".tmp").replace(path)


def save(model: Any, tokenizer: Any, out: Path, recipe: dict[str, Any]) -> None:
    """Write bfloat16 weights, tokenizer, generation defaults and the recipe.

    The config keeps `dtype: float32`: loaders upcast, which is faster on CPUs at this size and independent of batching.
    """
    from transformers import GenerationConfig

    model.generation_config = GenerationConfig(
        do_sample=True,
        temperature=0.6,
        top_p=0.95,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    weights = {name: w.to(torch.bfloat16) for name, w in model.state_dict().items() if name != "lm_head.weight"}
    model.save_pretrained(out, state_dict=weights)
    tokenizer.save_pretrained(out)
    (out / "recipe.json").write_text(json.dumps(recipe, indent=2) + "\n", encoding="utf-8")
