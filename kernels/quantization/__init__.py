"""Quantized models: the scheme, modules, calibration, and loading in transformers and vLLM.

`import tersely.kernels.quantization` registers the format with transformers; for vLLM an entry point does that.
"""

from __future__ import annotations

from .linear import Scheme, W4A8Config, W4A8Linear, W4A8Quantizer
from .model import quantize_model

__all__ = ["Scheme", "W4A8Config", "W4A8Linear", "W4A8Quantizer", "quantize_model"]
