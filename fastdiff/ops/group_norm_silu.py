"""GroupNorm, FiLM and an activation in one op.

    xhat = (x - mean) rstd       mean and variance over a group's C/groups channels and all pixels, rstd = (var + eps)^-1/2
    u    = xhat * weight + bias
    y    = act(u * (1 + scale) + shift)

Shapes: x [N, C, L], [N, C, H, W] or [N, C, T, H, W]; weight, bias [C]; scale, shift [N, C]; each of the four may be absent.
Dtypes: x fp32, bf16, fp16 (double on CPU); the parameters float32 or x's dtype; statistics and arithmetic in float32.
The op returns (y, mean, rstd), the statistics [N, groups] in float32; backward saves x and them and recomputes the rest.
Source: Wu & He 2018, "Group Normalization", equations 1-4 and 7; FiLM see `film.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from ._activation import activate, activation_derivative
from ._checks import check_act, check_images, check_parameter
from ._define import NATIVE_FLOATS, Sample, define
from ._layout import compute_dtype, laid_out_like, per_channel, spatial_sum

Maybe = torch.Tensor | None

NATIVE = NATIVE_FLOATS


def _grouped(x: torch.Tensor, groups: int) -> torch.Tensor:
    """[N, C, ...] -> [N, groups, elements of one group]."""
    return x.reshape(x.shape[0], groups, x[0].numel() // groups if x.shape[0] else 0)


def _normalise(x: torch.Tensor, mean: torch.Tensor, rstd: torch.Tensor, groups: int) -> torch.Tensor:
    return ((_grouped(x, groups) - mean[..., None]) * rstd[..., None]).reshape(x.shape)


def _affine(xhat: torch.Tensor, weight: Maybe, bias: Maybe) -> torch.Tensor:
    u = xhat if weight is None else xhat * per_channel(weight.to(xhat.dtype), xhat)
    return u if bias is None else u + per_channel(bias.to(xhat.dtype), xhat)


def _modulate(u: torch.Tensor, scale: Maybe, shift: Maybe) -> torch.Tensor:
    z = u if scale is None else u * (1 + per_channel(scale.to(u.dtype), u))
    return z if shift is None else z + per_channel(shift.to(u.dtype), u)


def reference(
    x: torch.Tensor, groups: int, weight: Maybe, bias: Maybe, eps: float, scale: Maybe, shift: Maybe, act: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    wide = x.to(compute_dtype(x))
    grouped = _grouped(wide, groups)
    first = grouped[..., :1].detach()  # a shift: without it even float64 loses four digits of a mean of 1e4
    mean = first.sum(2) + (grouped - first).mean(2)
    variance = (grouped - mean[..., None]).square().mean(2)  # two passes: E[x^2] - E[x]^2 cancels at large means
    rstd = (variance + eps).rsqrt()
    z = _modulate(_affine(_normalise(wide, mean, rstd, groups), weight, bias), scale, shift)
    return laid_out_like(activate(z, act).to(x.dtype), x), mean, rstd


def backward_reference(
    grad: torch.Tensor,
    x: torch.Tensor,
    mean: torch.Tensor,
    rstd: torch.Tensor,
    groups: int,
    weight: Maybe,
    bias: Maybe,
    scale: Maybe,
    shift: Maybe,
    act: str,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of x, weight, bias, scale and shift; empty where the argument is absent."""
    xhat = _normalise(x.to(compute_dtype(x)), mean, rstd, groups)
    u = _affine(xhat, weight, bias)
    dz = grad.to(u.dtype) * activation_derivative(_modulate(u, scale, shift), act)
    du = dz if scale is None else dz * (1 + per_channel(scale.to(u.dtype), u))
    dxhat = du if weight is None else du * per_channel(weight.to(u.dtype), u)

    # dx = rstd (dxhat - mean(dxhat) - xhat mean(dxhat xhat)), means over the group
    d, h = _grouped(dxhat, groups), _grouped(xhat, groups)
    dx = (d - d.mean(2, keepdim=True) - h * (d * h).mean(2, keepdim=True)) * rstd[..., None]

    def or_empty(gradient: torch.Tensor, like: Maybe) -> torch.Tensor:
        return u.new_empty(0) if like is None else gradient.to(like.dtype)

    return (
        laid_out_like(dx.reshape(x.shape).to(x.dtype), x),
        or_empty(spatial_sum(du * xhat).sum(0), weight),
        or_empty(spatial_sum(du).sum(0), bias),
        or_empty(spatial_sum(dz * u), scale),
        or_empty(spatial_sum(dz), shift),
    )


def _samples(dtype: torch.dtype, device: torch.device | str) -> Iterator[Sample]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int, dtype: torch.dtype = dtype) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    def make(
        name: str, x: torch.Tensor, groups: int, act: str = "silu", with_: str = "wbsh", own: bool = False, **kind: bool
    ) -> Sample:
        """with_: which of weight, bias, scale, sHift there are. own: parameters in x's dtype instead of float32."""
        parameter = dtype if own or dtype is torch.float64 else torch.float32
        n, c = x.shape[:2]
        weight, bias = normal(c, dtype=parameter) * 0.5 + 1, normal(c, dtype=parameter)
        scale, shift = normal(n, 2 * c, dtype=parameter).chunk(2, dim=1)
        chosen = [v if key in with_ else None for key, v in zip("wbsh", (weight, bias, scale, shift), strict=True)]
        return Sample(name, (x, groups, chosen[0], chosen[1], 1e-5, chosen[2], chosen[3], act), **kind)

    last = torch.channels_last
    yield make("tiny", normal(2, 4, 2, 3), 2, tiny=True)
    yield make("tiny plain", normal(2, 6, 5), 3, "gelu", with_="", tiny=True)
    yield make("nchw", normal(3, 24, 9, 7), 8)
    yield make("nchw own dtype", normal(2, 32, 8, 8), 32, "relu", own=True)
    yield make("channels_last", normal(3, 20, 9, 7).contiguous(memory_format=last), 4, "leaky_relu")
    yield make("channels_last affine", normal(2, 70, 13, 11).contiguous(memory_format=last), 7, with_="wb")
    yield make("modulation only", normal(2, 8, 4, 4), 2, with_="sh")
    yield make("scale only", normal(2, 8, 4, 4), 2, with_="wbs")
    yield make("3-D", normal(4, 6, 31), 1, "none")
    yield make("5-D", normal(2, 6, 3, 5, 4), 2, "gelu")
    yield make("5-D channels_last", normal(2, 6, 3, 5, 4).contiguous(memory_format=torch.channels_last_3d), 3)
    yield make("sliced", normal(4, 12, 6, 10)[:, 2:10, :, ::2], 4)
    yield make("expanded", normal(1, 8, 1, 6).expand(3, 8, 4, 6), 2)
    yield make("one pixel", normal(3, 8, 1, 1), 2)
    yield make("one element per group", normal(3, 8, 1, 1), 8)
    yield make("constant group", normal(2, 8, 1, 1).expand(2, 8, 5, 5).contiguous(), 8)
    yield make("constant 1e4", torch.full((2, 6, 5, 5), 1e4, dtype=dtype, device=device), 2)
    yield make("offset 1e4", normal(2, 8, 16, 16) + 1e4, 4)
    yield make("offset 1e4 channels_last", (normal(2, 24, 33, 31) + 1e4).contiguous(memory_format=last), 6, with_="wb")
    yield make("one group", normal(2, 7, 6, 5), 1, "none")
    yield make("one group channels_last", normal(2, 7, 6, 5).contiguous(memory_format=last), 1)
    yield make("one channel", normal(2, 1, 37, 5), 1, with_="b")
    yield make("three pixels of many channels", normal(2, 330, 1, 3), 11)
    yield make("many pixels", normal(1, 6, 97, 89), 3, with_="wsh")
    yield make("many pixels channels_last", normal(1, 18, 97, 89).contiguous(memory_format=last), 3, "gelu", with_="bh")
    yield make("more than a block keeps", normal(1, 128, 28, 32), 2)
    yield make("more than a block keeps, odd", normal(1, 130, 29, 31), 2, with_="wsh")
    yield make("uneven bundles of groups channels_last", normal(2, 28, 7, 6).contiguous(memory_format=last), 7)
    yield make("groups of two channels channels_last", normal(2, 40, 5, 5).contiguous(memory_format=last), 20)
    yield make("batch 1", normal(1, 40, 28, 28), 8)
    yield make("many small images", normal(70, 6, 3, 3), 3)
    yield make("many small images channels_last", normal(150, 16, 2, 2).contiguous(memory_format=last), 8)
    yield make("no images", normal(0, 8, 4, 4), 2)
    yield make("off an aligned address", normal(2 * 8 * 4 * 4 + 1)[1:].view(2, 8, 4, 4), 2)
    for name, shape, with_ in (
        ("64x32x8x8", (64, 32, 8, 8), "wbsh"),
        ("1x256x64x64", (1, 256, 64, 64), "wbsh"),
        ("16x64x64x64", (16, 64, 64, 64), "wbsh"),
        ("16x64x64x64 no film", (16, 64, 64, 64), "wb"),
        ("32x128x64x64", (32, 128, 64, 64), "wbsh"),
    ):
        yield make(name, normal(*shape), 32, with_=with_, large=True)
        yield make(f"{name} channels_last", normal(*shape).contiguous(memory_format=last), 32, with_=with_, large=True)


def _backward_samples(dtype: torch.dtype, device: torch.device | str) -> Iterator[Sample]:
    generator = torch.Generator().manual_seed(1)
    for sample in _samples(dtype, device):
        x, groups, weight, bias, _, scale, shift, act = sample.args
        grad = torch.randn(x.shape, generator=generator).to(device, dtype)
        _, mean, rstd = reference(*sample.args)
        args = (grad, x, mean, rstd, groups, weight, bias, scale, shift, act)
        yield Sample(sample.name, args, large=sample.large)


_backward = define(
    "group_norm_silu_backward(Tensor grad, Tensor x, Tensor mean, Tensor rstd, int groups, Tensor? weight, Tensor? bias, "
    "Tensor? scale, Tensor? shift, str act) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    backward_reference,
    samples=_backward_samples,
    native=NATIVE,
)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    x, ctx.groups, weight, bias, _, scale, shift, ctx.act = inputs
    _, mean, rstd = output
    ctx.mark_non_differentiable(mean, rstd)
    ctx.set_materialize_grads(False)  # no zeros for those two
    ctx.save_for_backward(x, mean, rstd, weight, bias, scale, shift)


def _autograd(ctx: Any, grad: Maybe, *_: Any) -> tuple[Maybe, ...]:
    if grad is None:
        return (None,) * 8
    x, mean, rstd, *parameters = ctx.saved_tensors
    dx, *gradients = _backward(grad, x, mean, rstd, ctx.groups, *parameters, ctx.act)
    dweight, dbias, dscale, dshift = (None if p is None else g for p, g in zip(parameters, gradients, strict=True))
    return dx, None, dweight, dbias, None, dscale, dshift, None


_op = define(
    "group_norm_silu(Tensor x, int groups, Tensor? weight, Tensor? bias, float eps, Tensor? scale, Tensor? shift, str act)"
    " -> (Tensor, Tensor, Tensor)",
    reference,
    samples=_samples,
    native=NATIVE,
    backward=_autograd,
    setup_context=_setup_context,
)


def group_norm_silu(
    x: torch.Tensor,
    groups: int,
    weight: Maybe = None,
    bias: Maybe = None,
    eps: float = 1e-5,
    scale: Maybe = None,
    shift: Maybe = None,
    act: str = "silu",
) -> torch.Tensor:
    """act(group_norm(x) * weight + bias) with FiLM before the activation: (...) * (1 + scale) + shift. Differentiable.

    x: [N, C, L], [N, C, H, W] or [N, C, T, H, W]; fp32, bf16, fp16 or double. groups: a divisor of C.
    weight, bias: [C]; scale, shift: [N, C], any strides; float32 or x's dtype; each may be None.
    eps: added to the variance, above 0. act: none, silu, relu, leaky_relu (slope 0.01) or gelu (exact).
    Returns x's shape and dtype, in x's suggested memory format.
    Raises TypeError for a wrong dtype and ValueError for a wrong shape, group count, device or activation.
    """
    check_images("x", x)
    channels = x.shape[1]
    if not isinstance(groups, int) or groups < 1 or channels % groups:
        raise ValueError(f"groups must be a divisor of x's {channels} channels, got {groups}")
    if 0 in x.shape[1:] and x.shape[0]:
        raise ValueError(f"x must have at least one element per group, got shape {tuple(x.shape)}")
    check_parameter("weight", weight, (channels,), x)
    check_parameter("bias", bias, (channels,), x)
    check_parameter("scale", scale, x.shape[:2], x)
    check_parameter("shift", shift, x.shape[:2], x)
    if not eps > 0:
        raise ValueError(f"eps must be above 0, got {eps}")
    check_act(act)
    return _op(x, groups, weight, bias, float(eps), scale, shift, act)[0]
