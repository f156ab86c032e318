"""Activations that ops apply, with their derivatives: none, silu, relu, leaky_relu (slope 0.01), gelu (exact, erf)."""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F

ACTIVATIONS = ("none", "silu", "relu", "leaky_relu", "gelu")
LEAKY_SLOPE = 0.01


def activate(z: torch.Tensor, act: str) -> torch.Tensor:
    match act:
        case "none":
            return z
        case "silu":
            return F.silu(z)
        case "relu":
            return F.relu(z)
        case "leaky_relu":
            return F.leaky_relu(z, LEAKY_SLOPE)
        case "gelu":
            return F.gelu(z)
    raise ValueError(f"act must be one of {', '.join(ACTIVATIONS)}, got {act!r}")


def activation_derivative(z: torch.Tensor, act: str) -> torch.Tensor:
    match act:
        case "none":
            return torch.ones_like(z)
        case "silu":
            s = torch.sigmoid(z)
            return s * (1 + z * (1 - s))
        case "relu":
            return (z > 0).to(z.dtype)
        case "leaky_relu":
            return torch.where(z > 0, torch.ones_like(z), torch.full_like(z, LEAKY_SLOPE))
        case "gelu":
            cdf = 0.5 * (1 + torch.erf(z * math.sqrt(0.5)))
            return cdf + z * torch.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
    raise ValueError(f"act must be one of {', '.join(ACTIVATIONS)}, got {act!r}")
