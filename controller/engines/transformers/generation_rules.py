"""What `generate` prepared, taken apart once: how tokens are picked, when a row ends, what cannot be done at all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    MinPLogitsWarper,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.generation import EosTokenCriteria, GenerationMode, MaxLengthCriteria

from ....errors import CapabilityError

# Processors that never look at the ids, so that the ids need not be kept.
_BLIND = (TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper, MinPLogitsWarper)
_OTHER_MODALITIES = ("pixel_", "image_", "input_features", "input_values", "mm_encoder")


@dataclass(slots=True)
class GenerationRules:
    """How tokens are picked and when a row ends, taken apart once so that each step does the least."""

    processors: LogitsProcessorList
    sample: bool
    temperature: float
    eos: frozenset[int]
    max_length: float
    criteria: StoppingCriteriaList
    """All but the plain end-of-sequence and length criteria, which the host decides by itself."""
    pads: bool
    pad: int
    record_scores: bool
    record_logits: bool

    @property
    def reads_ids(self) -> bool:
        """Whether anything looks at the ids put out so far."""
        return bool(self.criteria) or any(type(processor) not in _BLIND for processor in self.processors)


def read_generation_rules(
    processors: LogitsProcessorList, criteria: StoppingCriteriaList, config: GenerationConfig
) -> GenerationRules:
    """Sort the criteria into those the host decides by itself and those to be asked."""
    eos: set[int] = set()
    lengths: list[float] = []
    rest = StoppingCriteriaList()
    for criterion in criteria:
        if type(criterion) is EosTokenCriteria:
            eos.update(criterion.eos_token_id.flatten().tolist())
        elif type(criterion) is MaxLengthCriteria:
            lengths.append(criterion.max_length)
        else:
            rest.append(criterion)
    pad = config._pad_token_tensor
    record = bool(config.return_dict_in_generate)
    return GenerationRules(
        processors=processors,
        sample=bool(config.do_sample),
        temperature=float(config.temperature or 1.0),
        eos=frozenset(eos),
        max_length=min(lengths, default=float("inf")),
        criteria=rest,
        pads=any(hasattr(criterion, "eos_token_id") for criterion in criteria),
        pad=int(pad) if pad is not None else 0,
        record_scores=record and bool(config.output_scores),
        record_logits=record and bool(config.output_logits),
    )


def refuse_unsupported(model: Any, config: GenerationConfig, kwargs: dict[str, Any], watched: bool) -> None:
    """Raise CapabilityError for what this loop cannot do, before anything is computed."""
    if model.config.is_encoder_decoder:
        raise CapabilityError(f"{type(model).__name__} is an encoder-decoder; only decoder-only models can be steered")
    extra = sorted(name for name in kwargs if kwargs[name] is not None and name.startswith(_OTHER_MODALITIES))
    if extra or kwargs.get("inputs_embeds") is not None:
        raise CapabilityError(f"only token ids can be decoded, but got {', '.join(extra) or 'inputs_embeds'}")
    mode = config.get_generation_mode()
    if mode not in (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE):
        raise CapabilityError(
            f"generation mode {mode.value!r} cannot be steered; accepted: greedy and sampling (num_beams=1)"
        )
    flags = ["output_attentions", "output_hidden_states"]
    flags += ["output_scores", "output_logits"] if watched else []
    if config.return_dict_in_generate and (asked := [flag for flag in flags if getattr(config, flag)]):
        hint = "; scores and logits need control off" if watched else ""
        raise CapabilityError(f"{', '.join(asked)} cannot be returned by this loop{hint}; leave it out")
