"""Models in low-bit weights: the scheme, modules, what calibrates them, and how transformers and vLLM load them.

`import tersely.kernels.quantization` teaches transformers to load what `tersely quantize` writes; nothing else has to
be called. vLLM is taught by an entry point of the package.
"""

from __future__ import annotations

from .config import Scheme
from .hf import W4A8Config, W4A8Quantizer
from .linear import W4A8Linear
from .model import quantize_model

__all__ = ["Scheme", "W4A8Config", "W4A8Linear", "W4A8Quantizer", "quantize_model"]
