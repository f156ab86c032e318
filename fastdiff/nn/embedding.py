"""Embeddings of timesteps and class labels: what the residual blocks are conditioned on."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from .. import ops


class TimeEmbedding(nn.Module):
    """Sinusoidal embedding of timesteps: [sin(t f), cos(t f)], f from 1 down to about 1e-4. No parameters.

    embed_dim: even, at least 2; embedding_dim is an alias, both at once is an error.
    freq_shift: f[i] = 1e4^(-i / (embed_dim / 2 - freq_shift)), below embed_dim / 2: with 1, as in the code of Ho et al. 2020,
        the last is 1e-4 itself.
    t: [N], integer or floating, in timesteps. Returns float32 [N, embed_dim].
    Source: Vaswani et al. 2017, "Attention Is All You Need", section 3.5; see `ops.timestep_embedding`.
    """

    def __init__(self, embed_dim: int | None = None, *, embedding_dim: int | None = None, freq_shift: float = 0) -> None:
        super().__init__()
        if (embed_dim is None) == (embedding_dim is None):
            raise TypeError("TimeEmbedding takes embed_dim or its alias embedding_dim: exactly one of them")
        self.embed_dim = embedding_dim if embed_dim is None else embed_dim
        if self.embed_dim < 2 or self.embed_dim % 2:
            raise ValueError(f"embed_dim must be even and at least 2, got {self.embed_dim}")
        half = self.embed_dim // 2
        if freq_shift >= half:
            raise ValueError(f"freq_shift must be below embed_dim / 2 = {half}, got {freq_shift}")
        self.max_period = 1e4 ** (half / (half - freq_shift))  # of f[i] = max_period^(-i / half)

    def forward(self, t: torch.Tensor) -> torch.Tensor:
        return ops.timestep_embedding(t, self.embed_dim, self.max_period)

    def extra_repr(self) -> str:
        return f"{self.embed_dim}"


class TimeMLP(nn.Module):
    """Learned embedding of timesteps: sinusoid, Linear, SiLU, Linear, all embed_dim wide.

    sinusoid_dim: of the sinusoid alone; None: embed_dim. freq_shift: see `TimeEmbedding`.
    t: [N], integer or floating, in timesteps. Returns [N, embed_dim] in the weights' dtype, or autocast's.
    Source: Ho et al. 2020, "Denoising Diffusion Probabilistic Models", appendix B.
    """

    def __init__(self, embed_dim: int, sinusoid_dim: int | None = None, freq_shift: float = 0) -> None:
        super().__init__()
        self.sinusoid = TimeEmbedding(embed_dim if sinusoid_dim is None else sinusoid_dim, freq_shift=freq_shift)
        self.linear1 = nn.Linear(self.sinusoid.embed_dim, embed_dim)
        self.linear2 = nn.Linear(embed_dim, embed_dim)

    def forward(self, t: torch.Tensor) -> torch.Tensor:
        sinusoid = self.sinusoid(t).to(self.linear1.weight.dtype)
        return self.linear2(F.silu(self.linear1(sinusoid)))


class LabelEmbedding(nn.Module):
    """Learned embedding of class labels, with one class more, the null class, for "no label".

    The null class has the index num_classes; classifier-free guidance trains and samples with it.
    null_class: False for a table without it, which cannot do without labels.
    labels: int64 or int32 [N] in 0..num_classes, or None for the null class throughout.
    Returns [N, dim]; for None [1, dim], which broadcasts over any batch.
    Raises TypeError for a wrong dtype, ValueError for a wrong shape or, on the CPU, a label out of range; on CUDA
    that check would synchronise, so torch's own device assertion reports it.
    Source: Ho & Salimans 2022, "Classifier-Free Diffusion Guidance", section 3.2.
    """

    def __init__(self, num_classes: int, dim: int, null_class: bool = True) -> None:
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, got {num_classes}")
        self.null_class = num_classes if null_class else None
        self.table = nn.Embedding(num_classes + null_class, dim)

    def forward(self, labels: torch.Tensor | None) -> torch.Tensor:
        if labels is None:
            if self.null_class is None:
                raise ValueError("labels must be given: this network has no class for images without one")
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
            if low < 0 or high >= len(self.table.weight):
                last = len(self.table.weight) - 1
                allowed = f"0..{last}" if self.null_class is None else f"0..{last - 1}, or {last} for no label"
                raise ValueError(f"labels must be in {allowed}, got {low if low < 0 else high}")
