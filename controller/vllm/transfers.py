"""Copies between the host and a device for which nothing waits: from and to pinned memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def to_device(values: Any, device: torch.device) -> Tensor:
    """Whole numbers, a list or an array, on a device: int64, of the same shape."""
    pinned = torch.tensor(values, dtype=torch.int64, pin_memory=device.type == "cuda")
    return pinned.to(device, non_blocking=True)


def to_host(tensor: Tensor) -> Tensor:
    """A copy in pinned memory; it may be read once an event that was recorded after it on its stream has passed.

    A tensor that is on the host already is returned itself.
    """
    if tensor.device.type == "cpu":
        return tensor
    target = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return target.copy_(tensor, non_blocking=True)
