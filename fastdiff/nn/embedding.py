"""Embeddings of timesteps and class labels: what the residual blocks are conditioned on."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from .. import ops


class TimeEmbedding(nn.Module):
    """Sinusoidal embedding of timesteps: [sin(t f), cos(t f)], f from 1 down to about 1e-4. No parameters.

    embed_dim: even, at least 2; embedding_dim is an alias, both at once is an error.
    t: [N], integer or floating, in timesteps. Returns float32 [N, embed_dim].
    Source: Vaswani et al. 2017, "Attention Is All You Need", section 3.5; see `ops.timestep_embedding`.
    """

    def __init__(self, embed_dim: int | None = None, *, embedding_dim: int | None = None) -> None:
        super().__init__()
        if (embed_dim is None) == (embedding_dim is None):
            raise TypeError("TimeEmbedding takes embed_dim or its alias embedding_dim: exactly one of them")
        self.embed_dim = embedding_dim if embed_dim is None else embed_dim
        if self.embed_dim < 2 or self.embed_dim % 2:
            raise ValueError(f"embed_dim must be even and at least 2, got {self.embed_dim}")

    def forward(self, t: torch.Tensor) -> torch.Tensor:
        return ops.timestep_embedding(t, self.embed_dim)

    def extra_repr(self) -> str:
        return f"{self.embed_dim}"


class TimeMLP(nn.Module):
    """Learned embedding of timesteps: sinusoid, Linear, SiLU, Linear, all embed_dim wide.

    t: [N], integer or floating, in timesteps. Returns [N, embed_dim] in the weights' dtype, or autocast's.
    Source: Ho et al. 2020, "Denoising Diffusion Probabilistic Models", appendix B.
    """

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.sinusoid = TimeEmbedding(embed_dim)
        self.linear1 = nn.Linear(embed_dim, embed_dim)
        self.linear2 = nn.Linear(embed_dim, embed_dim)

    def forward(self, t: torch.Tensor) -> torch.Tensor:
        sinusoid = self.sinusoid(t).to(self.linear1.weight.dtype)
        return self.linear2(F.silu(self.linear1(sinusoid)))


class LabelEmbedding(nn.Module):
    """Learned embedding of class labels, with one class more, the null class, for "no label".

    The null class has the index num_classes (`null_class`); classifier-free guidance trains and samples with it.
    labels: int64 or int32 [N] in 0..num_classes, or None for the null class throughout.
    Returns [N, dim]; for None [1, dim], which broadcasts over any batch.
    Raises TypeError for a wrong dtype, ValueError for a wrong shape or, on the CPU, a label out of range; on CUDA
    that check would synchronise, so torch's own device assertion reports it.
    Source: Ho & Salimans 2022, "Classifier-Free Diffusion Guidance", section 3.2.
    """

    def __init__(self, num_classes: int, dim: int) -> None:
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, got {num_classes}")
        self.null_class = num_classes
        self.table = nn.Embedding(num_classes + 1, dim)

    def forward(self, labels: torch.Tensor | None) -> torch.Tensor:
        if labels is None:
            return self.table.weight[self.null_class :]
        self._check(labels)
        return self.table(labels)

    def _check(self, labels: torch.Tensor) -> None:
        if not isinstance(labels, torch.Tensor) or labels.dtype not in (torch.int64, torch.int32):
            kind = labels.dtype if isinstance(labels, torch.Tensor) else type(labels).__name__
            raise TypeError(f"labels must be an int64 or int32 tensor, got {kind}")
        if labels.dim() != 1:
            raise ValueError(f"labels must have shape [N], got {tuple(labels.shape)}")
        # A traced tensor has no values to check.
        if labels.device.type == "cpu" and labels.numel() and not torch.compiler.is_compiling():
            low, high = (int(v) for v in labels.aminmax())
            if low < 0 or high > self.null_class:
                raise ValueError(
                    f"labels must be in 0..{self.null_class - 1}, or {self.null_class} for no label, "
                    f"got {low if low < 0 else high}"
                )
