"""GroupNorm, its affine and FiLM as two numbers for each image and channel, from the statistics that `conv2d_fused` leaves.

    a = rstd weight (1 + scale)        b = (bias - mean rstd weight) (1 + scale) + shift
    a x + b = group_norm(x; weight, bias) (1 + scale) + shift

A channel's statistics are (count, mean, M2) of disjoint parts of its pixels, M2 the sum of squared deviations from that mean;
a group's are combined in fixed order (Chan et al. 1979). A second tensor's channels follow the first's, as in a concatenated
skip: a group may have channels of both.
Shapes: partials [N, C1, P1, 3], partials2 [N, C2, P2, 3]; weight, bias [C1 + C2]; scale, shift [N, C1 + C2]; a, b [N, C1 + C2].
Dtypes: float32 (double where partials are double); weight, bias, scale and shift also bf16 or fp16. No derivative.
Sources: Wu & He 2018, "Group Normalization", equations 1-4; Chan, Golub & LeVeque 1979, "Updating Formulae and a Pairwise
Algorithm for Computing Sample Variances".
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ._checks import check_device, check_tensor
from ._define import NATIVE_FLOATS, Sample, define

Maybe = torch.Tensor | None


def reference(
    partials: torch.Tensor,
    partials2: Maybe,
    groups: int,
    weight: Maybe,
    bias: Maybe,
    eps: float,
    scale: Maybe,
    shift: Maybe,
) -> tuple[torch.Tensor, torch.Tensor]:
    parts = [p for p in (partials, partials2) if p is not None]
    n, channels = partials.shape[0], sum(p.shape[1] for p in parts)
    # Means of channels first: all parts of a channel, then all channels of a group.
    per_channel = [_combined(p) for p in parts]
    count, mean, m2 = _combined(torch.cat(per_channel, 1).view(n, groups, channels // groups, 3)).unbind(-1)
    rstd = (m2 / count + eps).rsqrt()
    mean, rstd = (v.repeat_interleave(channels // groups, 1) for v in (mean, rstd))
    factor = rstd if weight is None else rstd * weight.to(rstd.dtype)
    offset = -mean * factor if bias is None else bias.to(rstd.dtype) - mean * factor
    if scale is not None:
        factor, offset = factor * (1 + scale.to(rstd.dtype)), offset * (1 + scale.to(rstd.dtype))
    return factor.contiguous(), (offset if shift is None else offset + shift.to(rstd.dtype)).contiguous()


def _combined(parts: torch.Tensor) -> torch.Tensor:
    """(count, mean, M2) [..., P, 3] of parts as one [..., 3]."""
    count, mean, m2 = parts.unbind(-1)
    total = count.sum(-1)
    first = mean[..., :1]  # a shift: means may be far from zero
    centre = first.squeeze(-1) + (count * (mean - first)).sum(-1) / total
    return torch.stack((total, centre, (m2 + count * (mean - centre[..., None]).square()).sum(-1)), -1)


def _samples(dtype: torch.dtype, device: torch.device | str) -> Iterator[Sample]:
    generator = torch.Generator().manual_seed(0)
    wide = torch.promote_types(dtype, torch.float32)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(device, wide)

    def partials(n: int, c: int, p: int, mean: float = 0.0) -> torch.Tensor:
        count = torch.randint(1, 40, (1, 1, p), generator=generator).to(device, wide).expand(n, c, p)
        return torch.stack((count, normal(n, c, p) + mean, count * (normal(n, c, p).square() + 0.1)), -1)

    def parameters(n: int, c: int) -> tuple[torch.Tensor, ...]:
        weight, bias = 1 + 0.5 * normal(c).to(dtype), normal(c).to(dtype)
        return weight, bias, 1e-5, *normal(n, 2 * c).to(dtype).chunk(2, dim=1)

    yield Sample("two parts", (partials(2, 8, 2), None, 4, *parameters(2, 8)))
    yield Sample("plain", (partials(2, 6, 1), None, 3, None, None, 1e-5, None, None))
    yield Sample("affine", (partials(3, 40, 5), None, 8, *parameters(3, 40)[:3], None, None))
    yield Sample("a skip", (partials(2, 8, 3), partials(2, 16, 2), 3, *parameters(2, 24)))
    yield Sample("a group of both", (partials(2, 10, 3), partials(2, 5, 3), 3, *parameters(2, 15)))
    yield Sample("far from zero", (partials(2, 8, 4, 1e3), None, 2, *parameters(2, 8)))
    yield Sample("one group", (partials(1, 7, 9), None, 1, *parameters(1, 7)))
    yield Sample("no images", (partials(0, 8, 2), None, 4, *parameters(0, 8)))


_op = define(
    "norm_affine(Tensor partials, Tensor? partials2, int groups, Tensor? weight, Tensor? bias, float eps, Tensor? scale, "
    "Tensor? shift) -> (Tensor, Tensor)",
    reference,
    samples=_samples,
    native=NATIVE_FLOATS,
)


def norm_affine(
    partials: torch.Tensor,
    groups: int,
    weight: Maybe = None,
    bias: Maybe = None,
    eps: float = 1e-5,
    scale: Maybe = None,
    shift: Maybe = None,
    partials2: Maybe = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(a, b) [N, C] for `conv2d_fused`: a x + b is the group norm of x with its affine and FiLM.

    partials: [N, C1, P, 3], as `conv2d_fused(..., statistics=True)` returns; partials2: those of what is concatenated to x.
    groups: a divisor of C = C1 + C2. weight, bias: [C]. scale, shift: [N, C], applied as (1 + scale) y + shift.
    Not differentiable: in training `group_norm_silu` has the derivative.
    Raises TypeError for a wrong type, ValueError for a wrong shape, value or device, naming the argument.
    """
    channels = 0
    for name, p in (("partials", partials), ("partials2", partials2)):
        if p is None and name == "partials2":
            continue
        check_tensor(name, p)
        if p.dim() != 4 or p.shape[3] != 3 or p.shape[2] < 1 or p.shape[0] != partials.shape[0]:
            raise ValueError(f"{name} must have shape [N, C, P, 3] with P at least 1, got {tuple(p.shape)}")
        if p.dtype not in (torch.float32, torch.float64) or p.dtype is not partials.dtype:
            raise TypeError(f"{name} must be float32, got {p.dtype}")
        check_device(name, p, partials)
        channels += p.shape[1]
    if isinstance(groups, bool) or not isinstance(groups, int) or groups < 1 or channels % groups:
        raise ValueError(f"groups must be a divisor of the {channels} channels, got {groups!r}")
    if isinstance(eps, bool) or not isinstance(eps, int | float) or not 0 <= eps < float("inf"):
        raise ValueError(f"eps must be a finite number, not negative, got {eps!r}")
    n = partials.shape[0]
    for name, v, shape in (
        ("weight", weight, (channels,)),
        ("bias", bias, (channels,)),
        ("scale", scale, (n, channels)),
        ("shift", shift, (n, channels)),
    ):
        if v is None:
            continue
        check_tensor(name, v)
        if v.shape != shape:
            raise ValueError(f"{name} must have shape {shape}, got {tuple(v.shape)}")
        if not v.is_floating_point() or (v.dtype is torch.float64) != (partials.dtype is torch.float64):
            raise TypeError(f"{name} must be {partials.dtype} or of 16 bits, got {v.dtype}")
        check_device(name, v, partials)
    return _op(partials, partials2, groups, weight, bias, float(eps), scale, shift)
