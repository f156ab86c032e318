"""FiLM, feature-wise linear modulation, with an activation in the same pass over memory.

    y[n, c, s] = act(x[n, c, s] * (1 + scale[n, c]) + shift[n, c])        with scale and shift
    y[n, c, s] = act(x[n, c, s] * scale[n, c])                            with scale alone

Shapes: x [N, C, L], [N, C, H, W] or [N, C, T, H, W]; scale, shift [N, C]. y has x's dtype and suggested memory format.
Dtypes: x fp32, bf16, fp16 (double on CPU); scale and shift float32 or x's dtype; computed in float32.
Gradients for x, scale and shift; the op saves its inputs and recomputes the rest.
Source: Perez et al. 2018, "FiLM: Visual Reasoning with a General Conditioning Layer", equation 2. The form 1 + scale is
that of Dhariwal & Nichol 2021, "Diffusion Models Beat GANs on Image Synthesis", section 3 (adaptive group normalisation).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from ._activation import activate, activation_derivative
from ._checks import check_act, check_images, check_parameter, check_tensor
from ._define import NATIVE_FLOATS, Sample, define
from ._layout import compute_dtype, laid_out_like, per_channel, spatial_sum


def _modulate(
    x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x, its factor and the modulated value z before the activation, in the compute dtype."""
    dtype = compute_dtype(x)
    x, factor = x.to(dtype), per_channel(scale.to(dtype), x)
    if shift is None:
        return x, factor, x * factor
    factor = 1 + factor
    return x, factor, x * factor + per_channel(shift.to(dtype), x)


def reference(x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor | None, act: str) -> torch.Tensor:
    z = _modulate(x, scale, shift)[2]
    return laid_out_like(activate(z, act).to(x.dtype), x)


def backward_reference(
    grad: torch.Tensor, x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor | None, act: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of x, scale and shift; that of shift is computed also where there is none."""
    wide, factor, z = _modulate(x, scale, shift)
    dz = grad.to(wide.dtype) * activation_derivative(z, act)
    dx = laid_out_like((dz * factor).to(x.dtype), x)
    return dx, spatial_sum(dz * wide).to(scale.dtype), spatial_sum(dz).to(scale.dtype)


def _samples(dtype: torch.dtype, device: torch.device | str) -> Iterator[Sample]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int, dtype: torch.dtype = dtype) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    def make(name: str, x: torch.Tensor, act: str, shift: bool = True, own: bool = False, **kind: bool) -> Sample:
        """own: scale and shift in x's dtype instead of float32."""
        parameter = dtype if own or dtype is torch.float64 else torch.float32
        # One projection of the time embedding gives both, so they are strided halves of one tensor.
        both = normal(x.shape[0], 2 * x.shape[1], dtype=parameter)
        scale, shift_value = both.chunk(2, dim=1)
        return Sample(name, (x, scale, shift_value if shift else None, act), **kind)

    yield make("tiny", normal(2, 3, 2, 3), "silu", tiny=True)
    yield make("tiny scale only", normal(2, 3, 5), "gelu", shift=False, tiny=True)
    yield make("nchw", normal(3, 17, 9, 7), "silu")
    yield make("nchw own dtype", normal(2, 32, 8, 8), "relu", own=True)
    yield make("channels_last", normal(3, 17, 9, 7).contiguous(memory_format=torch.channels_last), "leaky_relu")
    yield make("channels_last wide", normal(1, 70, 33, 31).contiguous(memory_format=torch.channels_last), "silu")
    yield make("channels_last scale only", normal(2, 8, 4, 4).contiguous(memory_format=torch.channels_last), "none", False)
    yield make("3-D", normal(4, 5, 31), "none")
    yield make("5-D", normal(2, 6, 3, 5, 4), "gelu")
    yield make("5-D channels_last", normal(2, 6, 3, 5, 4).contiguous(memory_format=torch.channels_last_3d), "silu")
    yield make("sliced", normal(4, 12, 6, 10)[:, 2:9, :, ::2], "silu")
    yield make("sliced channels_last", normal(2, 24, 6, 6).contiguous(memory_format=torch.channels_last)[:, :9], "silu")
    yield make("transposed", normal(2, 6, 5, 7).transpose(2, 3), "silu")
    yield make("expanded", normal(1, 8, 1, 6).expand(3, 8, 4, 6), "silu")
    yield make("one pixel", normal(3, 8, 1, 1), "silu")
    yield make("no pixels", normal(2, 8, 0, 4), "silu")
    yield make("no images", normal(0, 8, 4, 4), "silu")
    yield make("no channels", normal(2, 0, 4, 4), "silu")
    yield make("offset 1e4", normal(2, 8, 16, 16) + 1e4, "none")
    yield make("off an aligned address", normal(2 * 8 * 4 * 4 + 1)[1:].view(2, 8, 4, 4), "silu")
    yield make("large", normal(16, 64, 64, 64), "silu", large=True)
    yield make("large channels_last", normal(16, 64, 64, 64).contiguous(memory_format=torch.channels_last), "silu", large=True)


def _backward_samples(dtype: torch.dtype, device: torch.device | str) -> Iterator[Sample]:
    generator = torch.Generator().manual_seed(1)
    for sample in _samples(dtype, device):
        grad = torch.randn(sample.args[0].shape, generator=generator).to(device, dtype)
        yield Sample(sample.name, (grad, *sample.args), large=sample.large)


_backward = define(
    "film_backward(Tensor grad, Tensor x, Tensor scale, Tensor? shift, str act) -> (Tensor, Tensor, Tensor)",
    backward_reference,
    samples=_backward_samples,
    native=NATIVE_FLOATS,
)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    x, scale, shift, ctx.act = inputs
    ctx.save_for_backward(x, scale, shift)


def _autograd(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    x, scale, shift = ctx.saved_tensors
    dx, dscale, dshift = _backward(grad, x, scale, shift, ctx.act)
    return dx, dscale, None if shift is None else dshift, None


_op = define(
    "film(Tensor x, Tensor scale, Tensor? shift, str act) -> Tensor",
    reference,
    samples=_samples,
    native=NATIVE_FLOATS,
    backward=_autograd,
    setup_context=_setup_context,
)


def film(x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor | None = None, act: str = "none") -> torch.Tensor:
    """act(x * (1 + scale) + shift); with scale alone, act(x * scale). Differentiable.

    x: [N, C, L], [N, C, H, W] or [N, C, T, H, W]; fp32, bf16, fp16 or double.
    scale, shift: [N, C], any strides (halves of one projection need no copy); float32 or x's dtype, both the same.
    act: none, silu, relu, leaky_relu (slope 0.01) or gelu (exact).
    Returns x's shape and dtype, in x's suggested memory format.
    Raises TypeError for a wrong dtype and ValueError for a wrong shape, device or activation, naming the argument.
    """
    check_images("x", x)
    check_tensor("scale", scale)
    check_parameter("scale", scale, x.shape[:2], x)
    check_parameter("shift", shift, x.shape[:2], x)
    if shift is not None and shift.dtype is not scale.dtype:
        raise TypeError(f"shift must have scale's dtype {scale.dtype}, got {shift.dtype}")
    check_act(act)
    return _op(x, scale, shift, act)
