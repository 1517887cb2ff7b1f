"""What is checked of vLLM's arguments before a model is loaded: what cannot be controlled is refused at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from ...errors import CapabilityError, ModelError
from ..text.tokenizer_adapter import check_tokenizer

OPTIONS = ("tokenizer", "tokenizer_mode", "tokenizer_revision", "revision", "trust_remote_code")
"""What decides on a tokenizer, among vLLM's arguments and in its configuration of a model."""


_CONVERTED = frozenset(
    {"compilation_config", "structured_outputs_config", "profiler_config", "attention_config", "kv_transfer_config"}
)
"""Arguments that `vllm.LLM` takes in other forms than the engine does; no model runner depends on them."""


def load_tokenizer(model: str, options: Mapping[str, Any]) -> Any:
    """The tokenizer of a model under vLLM's arguments, of which `OPTIONS` count.

    Raises ModelError where it cannot be loaded, CapabilityError for one of Mistral's.
    """
    from vllm.tokenizers import cached_get_tokenizer

    name = options.get("tokenizer") or model
    try:
        tokenizer = cached_get_tokenizer(
            name,
            tokenizer_mode=options.get("tokenizer_mode") or "auto",
            revision=options.get("tokenizer_revision") or options.get("revision"),
            trust_remote_code=bool(options.get("trust_remote_code")),
        )
    except (ImportError, OSError, ValueError) as error:
        raise ModelError(
            f"the tokenizer {name!r} cannot be loaded: {error}; see --tokenizer, --tokenizer-mode, --revision and "
            "--trust-remote-code of vLLM"
        ) from None
    check_tokenizer(tokenizer)
    return tokenizer


def speculation_error(what: str, instead: str) -> CapabilityError:
    """The error for speculative decoding that cannot be controlled."""
    return CapabilityError(
        f"{what}, so control inside vLLM does not work with this speculative decoding; {instead}, or start vLLM "
        "without a speculative_config",
        code="speculative_decoding",
    )


def check_speculation(vllm_config: Any, on_v2: bool) -> int:
    """The most drafts of a step; raises CapabilityError where they cannot be controlled."""
    speculative = vllm_config.speculative_config
    if speculative is None:
        return 0
    if not on_v2:
        raise speculation_error(
            "vLLM chose its model runner V1, which leaves logits processors out where there are drafts",
            "use a GPU, a method of runner V2 (ngram, ngram_gpu, draft_model, eagle, eagle3, mtp), and no "
            "VLLM_USE_V2_MODEL_RUNNER=0",
        )
    if speculative.rejection_sample_method == "synthetic":
        raise speculation_error(
            "rejection_sample_method 'synthetic' accepts drafts without a look at the logits", "use 'standard'"
        )
    if getattr(vllm_config.parallel_config, "enable_batch_sharded_sampling", False):
        raise speculation_error("every worker samples for a part of the batch", "leave out batch-sharded sampling")
    return int(speculative.num_speculative_tokens)


def refuse_speculation(options: Mapping[str, Any]) -> None:
    """Refuse engine arguments whose speculative decoding cannot be controlled, before a model is loaded.

    Raises CapabilityError. Builds vLLM's configuration where drafts are asked for, as only that knows its runner.
    """
    if not any(options.get(name) for name in ("speculative_config", "spec_method", "spec_model", "spec_tokens")):
        return
    from vllm.engine.arg_utils import EngineArgs

    known = {f.name for f in fields(EngineArgs)} - _CONVERTED
    given = {name: value for name, value in options.items() if name in known}
    if isinstance(settings := given.get("speculative_config"), dict):
        given["speculative_config"] = dict(settings)  # vLLM adds to it
    config = EngineArgs(**given).create_engine_config()
    check_speculation(config, on_v2=config.use_v2_model_runner)


def check_endpoints(settings: Mapping[str, Any], tensor_parallel: int) -> None:
    """Raise CapabilityError where replies of servers would reach workers that must decide alike at different steps."""
    named = [name for name in ("verifier", "trials") if settings.get(name)]
    if named and tensor_parallel > 1:
        raise CapabilityError(
            f"{named[0]!r} does not work with a tensor_parallel_size of {tensor_parallel}: each worker would get "
            "replies at a step of its own, and they must decide alike; leave it out, or use data parallelism",
            code="tensor_parallel",
        )
