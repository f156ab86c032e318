"""Memory format and broadcasting rules that all ops share."""

from __future__ import annotations

import torch
from torch._prims_common import suggest_memory_format


def compute_dtype(x: torch.Tensor) -> torch.dtype:
    """float32 for fp32, bf16 and fp16; float64 for double."""
    return torch.promote_types(x.dtype, torch.float32)


def laid_out_like(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """y in x's suggested memory format: channels_last where x is (also as a slice), else contiguous."""
    return y.contiguous(memory_format=suggest_memory_format(x))


def per_channel(v: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """v of [N, C] or [C] viewed so that it broadcasts over the spatial dimensions of x [N, C, ...]."""
    lead = v.shape if v.dim() == 2 else (1, *v.shape)
    return v.reshape(*lead, *(1,) * (x.dim() - 2))


def spatial_sum(x: torch.Tensor) -> torch.Tensor:
    """[N, C, ...] -> [N, C]."""
    return x.flatten(2).sum(2)
