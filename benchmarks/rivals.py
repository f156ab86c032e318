"""What a user of plain torch would write in place of each op: torch's fastest operators, with torch's own noise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

from fastdiff.ops import Op
from fastdiff.ops._activation import activate
from fastdiff.ops._layout import per_channel


def film(x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, act: str) -> torch.Tensor:
    scale, shift = (per_channel(v.to(x.dtype), x) for v in (scale, shift))
    return activate(torch.addcmul(shift, x, 1 + scale), act)


def group_norm_silu(
    x: torch.Tensor, groups: int, weight: Any, bias: Any, eps: float, scale: Any, shift: Any, act: str
) -> torch.Tensor:
    z = F.group_norm(x, groups, weight, bias, eps)
    return activate(z, act) if scale is None else film(z, scale, shift, act)


def philox_normal(shape: list[int], seeds: torch.Tensor, *_: Any) -> torch.Tensor:
    return torch.randn(shape, device=seeds.device)


def philox_uniform(seeds: torch.Tensor, *_: Any) -> torch.Tensor:
    return torch.rand(seeds.shape, device=seeds.device, dtype=torch.float64)


def q_sample(x0: torch.Tensor, t: torch.Tensor, signal: torch.Tensor, sigma: torch.Tensor, *_: Any) -> Any:
    noise = torch.randn_like(x0)
    return per_image(signal[t], x0) * x0 + per_image(sigma[t], x0) * noise, noise


def ddpm_step(x: torch.Tensor, m: torch.Tensor, t: torch.Tensor, table: torch.Tensor, clip: float, *_: Any) -> torch.Tensor:
    return _step(x, m, table[t].unbind(1), clip)[0]


def sampler_step(x: torch.Tensor, m: torch.Tensor, previous: Any, coefficients: torch.Tensor, clip: float, *_: Any) -> Any:
    return _step(x, m, coefficients.expand(x.shape[0], 6).unbind(1), clip)


def _step(x: torch.Tensor, m: torch.Tensor, columns: Any, clip: float) -> tuple[torch.Tensor, torch.Tensor]:
    k = [per_image(c, x) for c in columns]
    x0 = (k[0] * x + k[1] * m).clamp(-clip, clip)
    return k[2] * x0 + k[3] * x + k[4] * torch.randn_like(x), x0


def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: Any, scale: float) -> torch.Tensor:
    return F.scaled_dot_product_attention(q, k, v, mask, scale=scale)


def conv2d_fused(
    x: torch.Tensor,
    x2: Any,
    weight: torch.Tensor,
    packed: Any,
    a: torch.Tensor,
    b: torch.Tensor,
    act_in: str,
    bias: torch.Tensor,
    residual: torch.Tensor,
    act_out: str,
    stride: int,
    padding: list[int],
    *_: Any,
) -> torch.Tensor:
    """Without a second input, and without the statistics: torch takes them in a pass of its own."""
    a, b, bias = (per_channel(v.to(x.dtype), x) for v in (a, b, bias))
    y = F.conv2d(activate(torch.addcmul(b, x, a), act_in), weight, None, stride, padding[0])
    return activate(y + bias + residual, act_out)


def per_image(v: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return v.to(x.dtype).reshape(-1, *(1,) * (x.dim() - 1))


RIVALS = (
    film,
    group_norm_silu,
    philox_normal,
    philox_uniform,
    attention,
    conv2d_fused,
    q_sample,
    ddpm_step,
    sampler_step,
)


def rival(op: Op) -> Callable[..., Any]:
    """Takes the op's arguments; the op's own reference where torch has nothing better."""
    return {f.__name__: f for f in RIVALS}.get(op.name, op.reference)
