"""How transformers loads a quantized checkpoint: importing this registers the quantizer, once."""

from __future__ import annotations

from typing import Any

from transformers.quantizers.auto import (
    AUTO_QUANTIZATION_CONFIG_MAPPING,
    register_quantization_config,
    register_quantizer,
)
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from ..huge_pages import to_huge_pages
from .config import METHOD, read_scheme
from .linear import W4A8Linear, empty_like, find_head, quantizable, replace


class W4A8Config(QuantizationConfigMixin):
    """The `quantization_config` of a checkpoint, as transformers keeps it; raises ModelError for another version's."""

    def __init__(self, **found: Any) -> None:
        self.scheme = read_scheme(found)
        self.quant_method = METHOD

    def to_dict(self) -> dict[str, Any]:
        """As it stands in config.json."""
        return self.scheme.written()


class W4A8Quantizer(HfQuantizer):
    """Puts layers that can hold quantized weights into a model before its weights are read."""

    quantization_config: W4A8Config
    requires_calibration = True  # so that transformers refuses a model that is not quantized yet

    def _process_model_before_weight_loading(self, model: Any, **_: Any) -> Any:
        scheme, head = self.quantization_config.scheme, find_head(model)
        for name, module in quantizable(model, scheme):
            replace(model, name, empty_like(module, scheme, scheme.form_of(name, name == head)))
        return model

    def _process_model_after_weight_loading(self, model: Any, **_: Any) -> Any:
        for module in model.modules():
            if isinstance(module, W4A8Linear):
                for parameter in module.parameters(recurse=False):
                    parameter.data = to_huge_pages(parameter.data)
        return model

    def is_serializable(self) -> bool:
        """Whether save_pretrained works: parameters are as files hold them."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Whole numbers have no gradients, but they go through, to adapters and embeddings."""
        return True

    @property
    def is_qat_trainable(self) -> bool:
        """See `is_trainable`; transformers asks for it where there are no adapters."""
        return True


if METHOD not in AUTO_QUANTIZATION_CONFIG_MAPPING:
    register_quantization_config(METHOD)(W4A8Config)
    register_quantizer(METHOD)(W4A8Quantizer)
