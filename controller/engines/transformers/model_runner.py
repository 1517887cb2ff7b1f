"""Run the model one step at a time, and keep its cache, mask and positions."""

from __future__ import annotations

from collections.abc import Sequence
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, GenerationConfig, GenerationMixin
from transformers.cache_utils import DynamicLayer

from ....kernels.attention import (
    GROUPED,
    SHARED_PREFIX,
    PreallocatedCacheLayer,
    SharedPrefixLayer,
    prefix_attention,
    prefix_pays,
    register,
)
from ....models import CACHE_NAMES, as_cache, find_cache
from ...text.tokenizer_adapter import count_common

# Inputs that only the model's own preparation can carry from step to step.
_OWN_INPUTS = frozenset({"token_type_ids", "mm_token_type_ids", "moe_mm_token_type_ids", "inputs_embeds"})
_MASKED_ATTENTION = frozenset({"eager", "sdpa", GROUPED, "flash_attention_2", "flash_attention_3", "flex_attention"})
_MIN_WASTE = 32
_PREFILL = 2048  # most tokens that `PrefixCache` reads in one pass
# Models whose attention gets keys and values as the cache returns them, once, with one mask for all heads.
_PLAIN = frozenset("llama qwen2 qwen3 mistral phi3 granite olmo2 smollm3 seed_oss ernie4_5".split())
_BY_ROW = ("attention_mask", "position_ids")  # inputs with one line per row


class HFInputsRunner:
    """Prepares each step with the model's own methods: correct for any decoder, one token per row and step."""

    ragged = False

    def __init__(self, model: Any, config: GenerationConfig, kwargs: dict[str, Any]) -> None:
        self.model = model
        self.config = config
        self.kwargs = kwargs
        compiled = model._valid_auto_compile_criteria(kwargs, config)
        self._call = model.get_compiled_call(config.compile_config) if compiled else model

    def prefill(self, ids: Tensor, share: bool = False, keep_once: bool = False) -> Tensor:
        """Read the prompts, ids [rows, length], and return the logits after them, [rows, vocabulary]."""
        outputs = self.model._prefill(ids, self.config, self.kwargs)
        return self._update(outputs)

    def step(self, tokens: Tensor, ids: Tensor | None) -> Tensor:
        """Feed tokens [rows, 1], the last column of ids [rows, length], and return the logits [rows, vocabulary]."""
        length = 1 if self.kwargs.get("use_cache") else None
        inputs = self.model.prepare_inputs_for_generation(ids, next_sequence_length=length, **self.kwargs)
        return self._update(self._call(**inputs, return_dict=True))

    def pin(self, done: Tensor) -> None:
        """Do nothing: the model's own preparation counts positions."""

    def _update(self, outputs: Any) -> Tensor:
        self.kwargs = self.model._update_model_kwargs_for_generation(outputs, self.kwargs, is_encoder_decoder=False)
        logits: Tensor = outputs.logits
        return logits[:, -1]

    @property
    def cache(self) -> Any:
        return find_cache(self.kwargs)[1]


class RaggedRunner:
    """Builds the inputs of a standard decoder directly.

    With full attention (`ragged`) rows may be fed different numbers of tokens at once: a shorter row gets holes on the
    left of the chunk, which stay masked and take no position.
    """

    def __init__(self, model: Any, config: GenerationConfig, kwargs: dict[str, Any]) -> None:
        self.model = model
        self.config = config
        self.kwargs = kwargs
        self.cache: Any = None
        self.mask: Tensor | None = None  # [rows, capacity], ones where nothing was written yet
        self.width = 0  # columns in the cache
        self.positions: Tensor | None = None  # [rows or 1, 1], of the last token fed
        self.advance: Tensor | int = 1  # [rows, 1], zero for a row that has ended
        self.inputs: dict[str, Any] = {}
        self.last = {"logits_to_keep": 1} if "logits_to_keep" in signature(model.forward).parameters else {}
        self.ragged = False
        self.holes: list[int] = []
        self.prefix = 0  # columns in the cache that all rows share

    def prefill(self, ids: Tensor, share: bool = False, keep_once: bool = False) -> Tensor:
        """Read prompts, ids [rows, length]; return logits [rows, vocabulary].

        Equal rows may `share` one reading, and its keys and values if these may be kept once: sums have another order.
        """
        self.rows, self.device = ids.shape[0], ids.device
        first, kinds = self._distinct(ids) if share else ([], [])
        shared = len(first) < len(kinds)
        if shared:
            lines = {name: self.kwargs[name][first] for name in _BY_ROW if self.kwargs.get(name) is not None}
            outputs = self.model._prefill(ids[first], self.config, {**self.kwargs, **lines})
        else:
            outputs = self.model._prefill(ids, self.config, self.kwargs)
        logits: Tensor = outputs.logits[:, -1]
        _, self.cache = find_cache(outputs)
        if shared:
            logits = logits[kinds]
        if shared and keep_once and len(first) == 1 and self._can_share_prefix():
            self.prefix = self.cache.get_seq_length()
            register(SHARED_PREFIX, prefix_attention)
            self.cache.layers = [SharedPrefixLayer(layer, self.rows) for layer in self.cache.layers]
        elif shared:
            self.cache.batch_select_indices(torch.tensor(kinds, device=self.device))
        layers = self.cache.layers
        self.cache.layers = [PreallocatedCacheLayer(one) if type(one) is DynamicLayer else one for one in layers]
        name, _ = find_cache(self.kwargs)
        kwargs = {key: value for key, value in self.kwargs.items() if key not in (*CACHE_NAMES, "labels")}
        mask, positions = kwargs.pop("attention_mask", None), kwargs.pop("position_ids", None)
        self.width = self.cache.get_seq_length()
        if mask is not None:
            self._write_mask(mask)
        if positions is not None:
            self.positions = positions[:, -1:].clone()
        self.ragged = positions is not None and _is_ragged(self.model, self.cache)
        known = as_cache(self.model, self.cache) if name is None else {name: self.cache}
        self.inputs = {**kwargs, **known, "return_dict": True}
        return logits

    def _distinct(self, ids: Tensor) -> tuple[list[int], list[int]]:
        """The first of each group of equal rows, and for each row its group; empty where rows have a cache already."""
        cache = find_cache(self.kwargs)[1]
        others = (v for name, v in self.kwargs.items() if name not in _BY_ROW)
        if cache.get_seq_length() or any(isinstance(value, Tensor) for value in others):
            return [], []
        mask = self.kwargs.get("attention_mask")
        rows = (ids if mask is None else torch.cat([ids, mask], dim=1)).tolist()
        first: dict[tuple[int, ...], int] = {}
        kinds = [first.setdefault(tuple(row), index) for index, row in enumerate(rows)]
        numbers = {index: number for number, index in enumerate(first.values())}
        return list(numbers), [numbers[kind] for kind in kinds]

    def _can_share_prefix(self) -> bool:
        """Whether to keep the prompt, the same in all rows and just read, once: where that pays and changes nothing.

        Sums are added in another order, so in half precision only if the caller has accepted that of `GROUPED`.
        """
        model, mask = self.model, self.kwargs.get("attention_mask")
        implementation = model.config._attn_implementation
        return (
            prefix_pays(self.rows, self.cache.get_seq_length())
            and self.device.type == "cpu"
            and model.config.model_type in _PLAIN
            and (implementation == GROUPED or (implementation == "sdpa" and model.dtype == torch.float32))
            and all(type(layer) is DynamicLayer for layer in self.cache.layers)
            and (mask is None or bool(mask.all()))
        )

    def _run(self, inputs: dict[str, Any]) -> Tensor:
        """Run the model, with the attention that its cache needs, and return the last logits, [rows, vocabulary]."""
        config = self.model.config
        before = config._attn_implementation
        if self.prefix:
            config._attn_implementation = SHARED_PREFIX
        try:
            logits: Tensor = self.model(**inputs).logits
        finally:
            config._attn_implementation = before
        return logits[:, -1]

    def step(self, tokens: Tensor, ids: Tensor | None = None) -> Tensor:
        """Feed tokens [rows, 1] and return the logits after them, [rows, vocabulary]; `ids` are not used."""
        self.width += 1
        inputs = self.inputs
        inputs["input_ids"] = tokens
        if self.positions is not None:
            self.positions += self.advance
            inputs["position_ids"] = self.positions
        if self.mask is not None:
            if self.width > self.mask.shape[1]:
                self._write_mask(self.mask)
            inputs["attention_mask"] = self.mask[:, : self.width]
        return self._run(inputs)

    def forward(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Feed each row its own tokens, at least one, in one forward pass; return the logits [rows, vocabulary]."""
        size = max(len(row) for row in rows)
        empty = [size - len(row) for row in rows]
        chunk = torch.tensor([[0] * gap + list(row) for gap, row in zip(empty, rows, strict=True)])
        gaps = torch.tensor(empty, device=self.device)[:, None]
        columns = torch.arange(size, device=self.device)
        if any(empty):
            self._materialize_mask()
        self._note_holes(empty)
        self.width += size
        inputs = {**self.inputs, **self.last, "input_ids": chunk.to(self.device)}
        assert self.positions is not None  # `ragged` says so
        # Holes get some position in range; nothing ever attends to them.
        inputs["position_ids"] = (self.positions + (1 + columns - gaps) * self.advance).clamp_(min=0)
        self.positions = inputs["position_ids"][:, -1:].clone()
        if self.mask is not None:
            if self.width > self.mask.shape[1]:
                self._write_mask(self.mask)
            self.mask[:, self.width - size : self.width] = columns >= gaps
            self._compact(size)
            inputs["attention_mask"] = self.mask[:, : self.width]
        return self._run(inputs)

    def pin(self, done: Tensor) -> None:
        """Keep ended rows, done [rows], at their last position, as learned positions could run out."""
        self.advance = (~done).long()[:, None]
        if self.positions is not None:
            self.positions = self.positions.expand(self.rows, 1).clone()

    def select_rows(self, rows: Tensor) -> None:
        """Keep only these rows, in rising order."""
        self.cache.batch_select_indices(rows)
        self.rows = len(rows)
        if self.mask is not None:
            self.mask = self.mask[rows]
        if self.positions is not None and len(self.positions) > 1:
            self.positions = self.positions[rows]
        if isinstance(self.advance, Tensor):
            self.advance = self.advance[rows]
        self.holes = [self.holes[row] for row in rows.tolist()] if self.holes else []
        if self.prefix and not prefix_pays(self.rows, self.prefix):
            self.cache.layers = [layer.expand() for layer in self.cache.layers]
            self.prefix = 0

    def rollback(self, row: int, count: int) -> None:
        """Remove the last `count` tokens fed to a row."""
        assert self.positions is not None
        if self.rows == 1 and not any(self.holes):
            self.cache.crop(-count)
            self.width -= count
            self.positions -= count
            if self.mask is not None:
                self.mask[:, self.width :] = 1
            return
        self._materialize_mask()
        assert self.mask is not None
        kept = self.mask[row, : self.width].nonzero().squeeze(1)
        self.mask[row, kept[-count:]] = 0
        self.positions = self.positions.expand(self.rows, 1).clone()
        self.positions[row] -= count
        self._note_holes([count if other == row else 0 for other in range(self.rows)])

    def _materialize_mask(self) -> None:
        if self.mask is None:
            self._write_mask(torch.ones(self.rows, self.width, dtype=torch.long, device=self.device))

    def _write_mask(self, mask: Tensor) -> None:
        """Copy mask [rows, length] into a larger buffer whose free columns are ones."""
        length = mask.shape[1]
        self.mask = mask.new_ones((self.rows, length + max(length, 256)))
        self.mask[:, :length] = mask

    def _note_holes(self, new: Sequence[int]) -> None:
        self.holes = [old + more for old, more in zip(self.holes or [0] * self.rows, new, strict=True)]

    def _compact(self, pending: int) -> None:
        """Remove holes of the cache once every row has many; the last `pending` columns are not in the cache yet."""
        waste = min(self.holes)
        past = self.width - pending
        if waste < max(_MIN_WASTE, past // 8):
            return
        assert self.mask is not None
        mask = self.mask[:, self.prefix : past]
        size = int(mask.sum(1).max())
        order = mask.argsort(dim=1, stable=True)[:, mask.shape[1] - size :]
        for layer in self.cache.layers:
            index = order[:, None, :, None].expand(-1, layer.keys.shape[1], -1, layer.keys.shape[-1])
            layer.keys = layer.keys.gather(2, index)
            index = order[:, None, :, None].expand(-1, layer.values.shape[1], -1, layer.values.shape[-1])
            layer.values = layer.values.gather(2, index)
        parts = [self.mask[:, : self.prefix], mask.gather(1, order), self.mask[:, past : past + pending]]
        self.width = self.prefix + size + pending
        self._write_mask(torch.cat(parts, dim=1))
        self.holes = [0] * self.rows


class PrefixCache:
    """Keys and values of the text that a model read last, so that of the next one only what differs is read.

    For models that `can_be_ragged`; others read each text whole, in one pass. With a `decoder` of the model, that runs
    alone, and its last hidden states [keep, width] take the place of the logits.
    """

    def __init__(self, model: Any, decoder: Any = None) -> None:
        self.model = model if decoder is None else decoder
        self._has_head = decoder is None
        self._can_crop = can_be_ragged(model)
        self._can_limit = "logits_to_keep" in signature(self.model.forward).parameters
        self._ids: list[int] = []
        self._cache: DynamicCache | None = None

    @torch.no_grad()
    def read(self, ids: Sequence[int], keep: int = 1) -> tuple[Tensor, int]:
        """The logits [keep, vocabulary] at the last `keep` of the ids, and how many ids were read for them."""
        if not self._can_crop:
            return self._run(ids, {"use_cache": False}, keep), len(ids)
        common = min(count_common(self._ids, ids), len(ids) - keep)
        cache, self._cache = self._cache, None  # until all is read
        if cache is None:
            cache, common = DynamicCache(config=self.model.config.get_text_config(decoder=True)), 0
        elif common < len(self._ids):
            cache.crop(common - len(self._ids))  # a negative count, which is relative to the cache's length
        inputs = {**as_cache(self.model, cache), "use_cache": True}
        one_pass = (self._can_limit or not self._has_head) and len(ids) - common <= _PREFILL
        last = common if one_pass else len(ids) - keep
        for start in range(common, last, _PREFILL):
            self._run(ids[start : min(start + _PREFILL, last)], inputs, 1)
        found = self._run(ids[last:], inputs, keep)
        self._ids, self._cache = list(ids), cache
        return found, len(ids) - common

    def _run(self, ids: Sequence[int], inputs: dict[str, Any], keep: int) -> Tensor:
        last = {"logits_to_keep": keep} if self._can_limit else {}
        fed = torch.tensor([list(ids)], device=self.model.device)
        output = self.model(fed, **inputs, **last)
        found: Tensor = output.logits if self._has_head else output.last_hidden_state
        return found[0, -keep:]


ModelRunner = HFInputsRunner | RaggedRunner


def make_runner(model: Any, ids: Tensor, config: GenerationConfig, kwargs: dict[str, Any]) -> ModelRunner:
    """Use `RaggedRunner` for a standard decoder with a growing cache, the model's own preparation otherwise."""
    _, cache = find_cache(kwargs)
    positions = kwargs.get("position_ids")
    plain = (
        _is_standard(model)
        and type(cache) is DynamicCache
        and not cache.is_compileable
        and bool(kwargs.get("use_cache"))
        and (positions is None or positions.dim() == 2)
        and not any(kwargs.get(name) is not None for name in _OWN_INPUTS)
        and model.device == ids.device
    )
    return RaggedRunner(model, config, kwargs) if plain else HFInputsRunner(model, config, kwargs)


def can_be_ragged(model: Any) -> bool:
    """Whether rows of this model may be fed different numbers of tokens at once, and rolled back."""
    takes_positions = "position_ids" in signature(model.forward).parameters
    cache = DynamicCache(config=model.config.get_text_config(decoder=True))
    return _is_standard(model) and takes_positions and not cache.is_compileable and _is_ragged(model, cache)


def _is_standard(model: Any) -> bool:
    prepare = getattr(model.prepare_inputs_for_generation, "__func__", None)
    return (
        prepare is GenerationMixin.prepare_inputs_for_generation
        and type(model)._update_model_kwargs_for_generation is GenerationMixin._update_model_kwargs_for_generation
        and not model.is_remote_code()
    )


def _is_ragged(model: Any, cache: Any) -> bool:
    return (
        all(type(layer) is DynamicLayer or isinstance(layer, PreallocatedCacheLayer) for layer in cache.layers)
        and model.config._attn_implementation in _MASKED_ATTENTION
    )
