"""A small model that reads along with the thinking of another, for its hidden states."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import CapabilityError
from .text.tokenizer_adapter import count_common, get_adapter
from .verification import AnswerFinal, NoVerdictError

if TYPE_CHECKING:
    from .engines.transformers.model_runner import PrefixCache

_CACHES = 8  # sequences that are read at the same time without reading any of them again


class StateReader:
    """Reads the hidden states of a transformers engine's model at two thirds of its depth; upper layers never run.

    Raises CapabilityError for an engine without a model in this process, or one whose decoder has no list of layers.
    """

    def __init__(self, engine: Any) -> None:
        model = getattr(engine, "model", None)
        decoder: Any = None if model is None else clone_sharing_weights(model).get_decoder()
        if not hasattr(decoder, "layers"):
            raise CapabilityError(
                f"{engine.name!r} shows no layers of a decoder; accepted as a reader: a model of transformers in this "
                "process, such as Qwen/Qwen2.5-0.5B-Instruct",
                code="no_local_model",
            )
        self.engine, self._model = engine, model
        config = copy.deepcopy(decoder.config)
        self.layer = config.num_hidden_layers = max(1, config.num_hidden_layers * 2 // 3)
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[: self.layer]
        decoder.config, decoder.layers = config, decoder.layers[: self.layer]
        self.width: int = config.hidden_size
        self._decoder, self._codec = decoder, get_adapter(engine.tokenizer)
        self._caches: OrderedDict[tuple[str, int], PrefixCache] = OrderedDict()

    def describe(self) -> dict[str, Any]:
        """What a text probe keeps of its reader."""
        return {"base": {"name": self.engine.name, "fingerprint": self.engine.fingerprint()}, "layer": self.layer}

    def read(self, question: str, texts: Sequence[str], sequence: int = 0) -> tuple[NDArray[np.float32], int]:
        """The states at the ends of a growing thinking's texts, [texts, width], and how many tokens were read.

        Raises NoVerdictError where they do not fit into the reader's context.
        """
        from .engines.transformers.model_runner import PrefixCache  # which imports transformers

        key = question, sequence
        cache = self._caches.pop(key, None) or PrefixCache(self._model, self._decoder)
        self._caches[key] = cache
        if len(self._caches) > _CACHES:
            self._caches.popitem(last=False)
        start, ids = self._encode_prompt(question), self._encode(texts[-1])
        ends = [len(start) + count_common(self._encode(text), ids) for text in texts[:-1]]
        ids = (*start, *ids)
        if (context := self.engine.context_length) is not None and len(ids) > context:
            raise NoVerdictError(f"the thinking is longer than the reader's context of {context} tokens")
        first = min([*ends, len(ids)]) - 1
        states, read = cache.read(ids, len(ids) - first)
        return states[[end - 1 - first for end in (*ends, len(ids))]].float().cpu().numpy(), read

    def _encode(self, thinking: str) -> Sequence[int]:
        return self._codec.encode(thinking.lstrip())  # logs often lack the white space that it begins with

    def _encode_prompt(self, question: str) -> Sequence[int]:
        tokenizer = self.engine.tokenizer
        if not tokenizer.chat_template:
            return self._codec.encode(f"{question}\n<think>\n")
        messages = [{"role": "user", "content": question}]
        prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        return self._codec.encode(f"{prompt}<think>\n")

    def judge(self, asked: AnswerFinal) -> tuple[float, int]:
        """How probably a value is final, and how many tokens were read; raises NoVerdictError for another's probe."""
        base = asked.probe.base
        if base["fingerprint"] != self.engine.fingerprint():
            raise NoVerdictError(f"the text probe reads states of {base['name']}, and this is {self.engine.name!r}")
        states, read = self.read(asked.question, [asked.thinking], asked.sequence)
        row = np.concatenate([np.array(asked.features, np.float32), states[0]])
        return float(asked.probe.probabilities([row])[0]), read


def clone_sharing_weights(model: Any) -> Any:
    """Copy the modules but not the weights, so that hooks on the decoding model do not see the verifier's forwards."""
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, shared)
