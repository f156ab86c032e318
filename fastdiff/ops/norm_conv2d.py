"""A convolution of what GroupNorm, FiLM and an activation make of its input, with all their derivatives: `conv2d_fused` for
training.

    h = act(group_norm(x; gn_weight, gn_bias) (1 + scale) + shift)      x the concatenation of x and x2 over channels
    y = conv(pad(up(h)), weight) + bias[n, co] + residual
    partials[n, co, p] = (count, mean, M2) of y, for the next norm

With groups = 0 there is no norm: h = act(x). `up` repeats each pixel 2 x 2; zeros are padded after it. The statistics of x and
x2 are taken from their own partials, as the op that made them left them, and from x and x2 themselves where these are absent.
Partials carry no gradient: dx has all of the norm's, that of the statistics with it, whichever way they came.
The op returns (y, partials, coefficients), these [4, N, C]: mean, rstd, a and b of each channel, a x + b the norm and its FiLM;
[0, N, C] where there is none. Backward saves x, x2 and them, and makes h again:

    dh = conv_transpose(dy, weight), dw = sum_n dy h, dz = act'(a x + b) dh, the rest as in `group_norm_silu.py`

Shapes: x [N, C1, H, W], x2 [N, C2, H, W]; partials [N, C1, P, 3], partials2 [N, C2, P2, 3]; gn_weight, gn_bias [C]; scale and
shift [N, C]; weight [Cout, C, kh, kw], C = C1 + C2; bias [Cout] or [N, Cout]; y and residual [N, Cout, H', W'], channels_last.
Dtypes: x fp32, bf16, fp16 (double on CPU), so are x2, residual, y; all parameters float32 or x's dtype. Products take h, dy and
weight in x's dtype and are added in float32; the weight's gradient is rounded to the weight's dtype alone.
Sources: Wu & He 2018, "Group Normalization", equations 1-4 and 7; Lavin & Gray 2016, "Fast Algorithms for Convolutional Neural
Networks", section 4, whose tiles also take the weight's gradient.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.nn import functional as F

from ._activation import activate, activation_derivative
from ._checks import check_act, check_device, check_floating, check_parameter, check_tensor
from ._define import NATIVE_FLOATS, Sample, define
from ._layout import compute_dtype
from .conv2d_fused import check_kind, output_shape, statistics_of
from .group_norm_silu import backward_reference as norm_backward
from .group_norm_silu import reference as norm

Maybe = torch.Tensor | None
_NoAutocast = torch._C._DisableAutocast  # for every device at once, and the reference is traced on meta, which has none


def reference(x: torch.Tensor, *rest: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return _convolution(compute_dtype(x), x, *rest)


def _plain(x: torch.Tensor, *rest: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """By torch's operators in x's dtype."""
    return _convolution(x.dtype, x, *rest)


def _convolution(
    dtype: torch.dtype,
    x: torch.Tensor,
    x2: Maybe,
    partials: Maybe,
    partials2: Maybe,
    groups: int,
    gn_weight: Maybe,
    gn_bias: Maybe,
    eps: float,
    scale: Maybe,
    shift: Maybe,
    act: str,
    weight: torch.Tensor,
    bias: Maybe,
    residual: Maybe,
    stride: int,
    padding: Sequence[int],
    upsample: bool,
    statistics: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Takes the statistics of x and x2 from themselves: their partials say the same, but carry no gradient."""
    with _NoAutocast():  # the op casts nothing
        wide = compute_dtype(x)
        both = (x if x2 is None else torch.cat((x, x2), 1)).to(wide)
        if groups:
            h, mean, rstd = norm(both, groups, gn_weight, gn_bias, eps, scale, shift, act)
            coefficients = _coefficients(mean, rstd, both.shape[1], gn_weight, gn_bias, scale, shift)
        else:
            h, coefficients = activate(both, act), both.new_empty(0, *both.shape[:2])
        y = F.conv2d(_read(h.to(dtype), padding, upsample), weight.to(dtype), stride=stride)
        if bias is not None:
            y = y + (bias.to(dtype)[:, :, None, None] if bias.dim() == 2 else bias.to(dtype)[:, None, None])
        if residual is not None:
            y = y + residual.to(dtype)
        taken = statistics_of(y.detach().to(wide)) if statistics else y.new_empty((*y.shape[:2], 0, 3), dtype=wide)
    return torch.empty_like(y, dtype=x.dtype, memory_format=torch.channels_last).copy_(y), taken, coefficients


def _read(h: torch.Tensor, padding: Sequence[int], upsample: bool) -> torch.Tensor:
    """What the bare convolution reads."""
    if upsample:
        h = h.repeat_interleave(2, 2).repeat_interleave(2, 3)
    return F.pad(h, tuple(padding))


def _coefficients(
    mean: torch.Tensor, rstd: torch.Tensor, channels: int, weight: Maybe, bias: Maybe, scale: Maybe, shift: Maybe
) -> torch.Tensor:
    mean, rstd = (v.detach().repeat_interleave(channels // mean.shape[1], 1) for v in (mean, rstd))
    a = rstd if weight is None else rstd * weight.detach().to(rstd.dtype)
    b = -mean * a if bias is None else bias.detach().to(rstd.dtype) - mean * a
    if scale is not None:
        a, b = (v * (1 + scale.detach().to(v.dtype)) for v in (a, b))
    return torch.stack((mean, rstd, a, b if shift is None else b + shift.detach().to(b.dtype)))


def backward_reference(grad: torch.Tensor, x: torch.Tensor, *rest: Any) -> tuple[torch.Tensor, ...]:
    """Gradients of x, x2, gn_weight, gn_bias, scale, shift, weight and bias; empty where the argument is absent, and all but
    those of weight and bias where `inputs` is False."""
    return _gradients(compute_dtype(x), grad, x, *rest)


def _backward_plain(grad: torch.Tensor, x: torch.Tensor, *rest: Any) -> tuple[torch.Tensor, ...]:
    return _gradients(x.dtype, grad, x, *rest)


def _gradients(
    dtype: torch.dtype,
    grad: torch.Tensor,
    x: torch.Tensor,
    x2: Maybe,
    coefficients: torch.Tensor,
    groups: int,
    gn_weight: Maybe,
    gn_bias: Maybe,
    scale: Maybe,
    shift: Maybe,
    act: str,
    weight: torch.Tensor,
    bias: Maybe,
    stride: int,
    padding: Sequence[int],
    upsample: bool,
    inputs: bool,
) -> tuple[torch.Tensor, ...]:
    wide = compute_dtype(x)
    both = (x if x2 is None else torch.cat((x, x2), 1)).to(wide)
    if groups:
        mean, rstd, a, b = coefficients.unbind()
        z = both * a[:, :, None, None] + b[:, :, None, None]
    else:
        z = both
    read = _read(activate(z, act).to(dtype), padding, upsample)
    of = weight.to(dtype)
    mask = [inputs, True, False]
    with _NoAutocast():
        dh, dweight, _ = torch.ops.aten.convolution_backward(
            grad.to(dtype), read, of, None, [stride] * 2, [0, 0], [1, 1], False, [0, 0], 1, mask
        )

    def or_empty(gradient: torch.Tensor, like: Maybe) -> torch.Tensor:
        return x.new_empty(0) if like is None else gradient.to(like.dtype)

    parameters = gn_weight, gn_bias, scale, shift
    gradients = [x.new_empty(0) for _ in range(6)]
    if inputs:
        left, right, top, bottom = padding
        dh = dh[:, :, top : dh.shape[2] - bottom, left : dh.shape[3] - right].to(wide)
        if upsample:
            dh = dh.unflatten(3, (-1, 2)).sum(4).unflatten(2, (-1, 2)).sum(3)
        if groups:
            each = both.shape[1] // groups
            of_norm = (mean[:, ::each], rstd[:, ::each], groups, *parameters, act)
            dx, *found = norm_backward(dh, both, *of_norm)
            gradients[2:] = [or_empty(g, p) for g, p in zip(found, parameters, strict=True)]
        else:
            dx = dh * activation_derivative(z, act)
        split = dx.to(x.dtype).split([x.shape[1], both.shape[1] - x.shape[1]], 1)
        gradients[: 1 if x2 is None else 2] = [v.clone(memory_format=torch.channels_last) for v in split if v.shape[1]]
    per_image = bias is not None and bias.dim() == 2
    dbias = or_empty(grad.to(wide).sum((2, 3) if per_image else (0, 2, 3)), bias)
    dw = torch.empty_like(weight).copy_(dweight)  # in its memory format
    return *gradients, dw, dbias


def _samples(dtype: torch.dtype, device: torch.device | str) -> Iterator[Sample]:
    generator = torch.Generator().manual_seed(0)
    wide = torch.promote_types(dtype, torch.float32)

    def normal(*shape: int, dtype: torch.dtype = dtype) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    def images(*shape: int) -> torch.Tensor:
        return normal(*shape).contiguous(memory_format=torch.channels_last)

    def make(
        name: str,
        x: torch.Tensor,
        outputs: int,
        kernel: int | tuple[int, int] = 3,
        *,
        x2: Maybe = None,
        groups: int = 1,
        with_: str = "wbsh",
        act: str = "silu",
        partials: bool = True,
        bias: str = "channel",
        residual: bool = False,
        stride: int = 1,
        padding: Sequence[int] | None = None,
        upsample: bool = False,
        statistics: bool = True,
        own: bool = False,
        **kind: bool,
    ) -> Sample:
        """with_: which of gn_weight, gn_bias, scale, sHift there are. own: parameters in x's dtype, not the compute dtype."""
        kh, kw = (kernel, kernel) if isinstance(kernel, int) else kernel
        n, channels = x.shape[0], x.shape[1] + (0 if x2 is None else x2.shape[1])
        parameter = dtype if own else wide
        film = normal(n, 2 * channels, dtype=parameter).chunk(2, dim=1)
        norms = (1 + 0.5 * normal(channels, dtype=parameter), normal(channels, dtype=parameter), *film)
        norms = [v if key in with_ and groups else None for key, v in zip("wbsh", norms, strict=True)]
        weight = normal(outputs, channels, kh, kw, dtype=parameter) * (channels * kh * kw) ** -0.5
        padding = padding or [kw // 2, kw // 2, kh // 2, kh // 2]
        up = 2 if upsample else 1
        height = (up * x.shape[2] + padding[2] + padding[3] - kh) // stride + 1
        width = (up * x.shape[3] + padding[0] + padding[1] - kw) // stride + 1
        biases = {"": None, "channel": normal(outputs, dtype=parameter), "image": normal(n, outputs, dtype=parameter)}
        given = [statistics_of(v.to(wide)) if partials and groups and v is not None else None for v in (x, x2)]
        args = (
            *(x, x2, *given, groups, *norms[:2], 1e-5, *norms[2:], act),
            *(weight, biases[bias]),
            images(n, outputs, height, width) if residual else None,
            *(stride, list(padding), upsample, statistics),
        )
        return Sample(name, args, **kind)

    yield make("tiny", images(2, 4, 2, 3), 3, groups=2, partials=False, residual=True, tiny=True)
    yield make(
        "tiny skip", images(2, 3, 3, 2), 2, x2=images(2, 3, 3, 2), groups=2, act="gelu", partials=False, bias="image", tiny=True
    )
    yield make("tiny stride", images(1, 2, 4, 3), 2, groups=1, act="none", partials=False, stride=2, with_="wb", tiny=True)
    yield make("all of it", images(2, 32, 9, 7), 32, groups=8, residual=True, bias="image")
    yield make("three images", images(3, 24, 5, 6), 16, groups=6, own=True)
    yield make("ragged channels", images(3, 7, 6, 5), 5, groups=7, with_="wb", act="relu")
    yield make("statistics of its own", images(2, 24, 6, 5), 20, groups=4, partials=False)
    yield make("no norm", images(2, 33, 8, 8), 40, groups=0, act="none", bias="", statistics=False)
    yield make("no norm, activation", images(2, 20, 6, 6), 24, groups=0, act="silu")
    yield make("one channel", images(2, 1, 8, 8), 20, groups=0, act="none")
    yield make("one output", images(2, 32, 7, 7), 1, groups=8, with_="wb", bias="")
    yield make("1x1", images(2, 48, 7, 7), 96, 1, groups=16, act="none", with_="wb")
    yield make("stride 2", images(2, 32, 9, 8), 24, groups=0, act="none", stride=2)
    yield make("stride 2, norm, padded at the end", images(2, 16, 8, 8), 24, groups=4, stride=2, padding=[0, 1, 0, 1])
    yield make("upsampled", images(2, 32, 5, 4), 32, groups=0, act="none", upsample=True)
    yield make("upsampled norm", images(1, 20, 4, 5), 12, groups=5, upsample=True, statistics=False)
    yield make("a skip", images(2, 32, 7, 7), 64, x2=images(2, 64, 7, 7), groups=32)
    yield make("a skip, ragged, groups of both", images(2, 20, 6, 6), 8, x2=images(2, 10, 6, 6), groups=3, residual=True)
    yield make("a skip, no norm", images(2, 20, 6, 6), 40, 1, x2=images(2, 9, 6, 6), groups=0, act="none")
    yield make("wide row", images(1, 16, 3, 61), 33, groups=4)
    yield make("several parts", images(1, 40, 28, 28), 32, groups=8, residual=True, with_="wbs")
    yield make("one pixel", images(3, 64, 1, 1), 32, groups=16, with_="sh")
    yield make("uneven kernel", images(2, 10, 8, 9), 6, (2, 5), groups=5, padding=[1, 3, 0, 1])
    yield make("stride 3, 4x4", images(1, 12, 11, 13), 10, 4, groups=3, stride=3, padding=[2, 0, 1, 1])
    yield make("NCHW", normal(2, 18, 6, 5), 20, groups=6, act="leaky_relu")
    yield make("sliced", images(3, 24, 6, 10)[:, 2:22, :, ::2], 16, groups=5, residual=True)
    yield make("no images", images(0, 16, 4, 4), 8, groups=4)
    for n, c, size in ((16, 64, 28), (16, 128, 14), (16, 128, 7)):
        yield make(f"{n}x{c}x{size}x{size}", images(n, c, size, size), c, groups=32, residual=True, large=True)


def _backward_samples(dtype: torch.dtype, device: torch.device | str) -> Iterator[Sample]:
    generator = torch.Generator().manual_seed(1)
    for sample in _samples(dtype, device):
        y, _, coefficients = reference(*sample.args)
        x, x2, _, _, groups, gn_weight, gn_bias, _, scale, shift, act, weight, bias, _, stride, padding, upsample, _ = (
            sample.args
        )
        grad = torch.randn(y.shape, generator=generator).to(device, dtype).contiguous(memory_format=torch.channels_last)
        shape = (stride, padding, upsample)
        args = (grad, x, x2, coefficients, groups, gn_weight, gn_bias, scale, shift, act, weight, bias, *shape, True)
        yield Sample(sample.name, args, large=sample.large)
        if sample.name == "one channel":
            yield Sample("without inputs", (*args[:-1], False))


_backward = define(
    "norm_conv2d_backward(Tensor grad, Tensor x, Tensor? x2, Tensor coefficients, int groups, Tensor? gn_weight, "
    "Tensor? gn_bias, Tensor? scale, Tensor? shift, str act, Tensor weight, Tensor? bias, int stride, int[] padding, "
    "bool upsample, bool inputs) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    backward_reference,
    samples=_backward_samples,
    native={"CPU": NATIVE_FLOATS["CPU"]},
    plain=_backward_plain,
)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    x, x2, _, _, ctx.groups, gn_weight, gn_bias, _, scale, shift, ctx.act, weight, bias, _, *ctx.shape, _ = inputs
    _, partials, coefficients = output
    ctx.mark_non_differentiable(partials, coefficients)
    ctx.set_materialize_grads(False)  # no zeros for those two
    ctx.save_for_backward(x, x2, coefficients, gn_weight, gn_bias, scale, shift, weight, bias)


def _autograd(ctx: Any, grad: Maybe, *_: Any) -> tuple[Maybe, ...]:
    if grad is None:
        return (None,) * 18
    x, x2, coefficients, *norms, weight, bias = ctx.saved_tensors
    inputs = any(ctx.needs_input_grad[i] for i in (0, 1, 5, 6, 8, 9))
    found = _backward(grad, x, x2, coefficients, ctx.groups, *norms, ctx.act, weight, bias, *ctx.shape, inputs)
    of = (x, x2, *norms, weight, bias)
    wanted = (0, 1, 5, 6, 8, 9, 11, 12)
    dx, dx2, dgn_weight, dgn_bias, dscale, dshift, dweight, dbias = (
        g if p is not None and ctx.needs_input_grad[i] else None for p, g, i in zip(of, found, wanted, strict=True)
    )
    dresidual = grad if ctx.needs_input_grad[13] else None
    parameters = (None, dgn_weight, dgn_bias, None, dscale, dshift, None, dweight, dbias, dresidual)
    return (dx, dx2, None, None, *parameters, None, None, None, None)


_op = define(
    "norm_conv2d(Tensor x, Tensor? x2, Tensor? partials, Tensor? partials2, int groups, Tensor? gn_weight, Tensor? gn_bias, "
    "float eps, Tensor? scale, Tensor? shift, str act, Tensor weight, Tensor? bias, Tensor? residual, int stride, "
    "int[] padding, bool upsample, bool statistics) -> (Tensor, Tensor, Tensor)",
    reference,
    samples=_samples,
    native={"CPU": NATIVE_FLOATS["CPU"]},
    plain=_plain,
    backward=_autograd,
    setup_context=_setup_context,
)


def norm_conv2d(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: Maybe = None,
    *,
    x2: Maybe = None,
    groups: int = 0,
    gn_weight: Maybe = None,
    gn_bias: Maybe = None,
    eps: float = 1e-5,
    scale: Maybe = None,
    shift: Maybe = None,
    act: str = "none",
    partials: Maybe = None,
    partials2: Maybe = None,
    residual: Maybe = None,
    stride: int = 1,
    padding: int | Sequence[int] = 0,
    upsample: bool = False,
    statistics: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """conv(act(group_norm(x) (1 + scale) + shift), weight) + bias + residual, channels_last. Differentiable in all of these.

    With `statistics` the result is a pair: that, and its partials [N, Cout, P, 3] for the next norm, which carry no gradient.

    x: [N, C1, H, W]; x2: [N, C2, H, W], whose channels follow x's without being copied; fp32, bf16, fp16 or double.
    weight: [Cout, C1 + C2, kh, kw] in float32 or x's dtype: products take it in x's dtype, its gradient has its own.
    bias: [Cout], or [N, Cout] for one of each image. residual: like the result, in x's dtype.
    groups: a divisor of C = C1 + C2, or 0 for no norm and none of its parameters. eps: added to the variance, above 0.
    gn_weight, gn_bias: [C]; scale, shift: [N, C]; float32 or x's dtype.
    act: none, silu, relu, leaky_relu (slope 0.01) or gelu (exact), after the norm.
    partials, partials2: the statistics of x and x2 that the op that made them left; absent, they are taken from x and x2.
    stride: at least 1. padding: of zeros, one number, or (left, right, top, bottom). upsample: nearest, 2x, before padding.
    Raises TypeError for a wrong type or dtype, ValueError for a wrong shape, value or device, naming the argument.
    """
    channels = _check_inputs(x, x2, groups, partials, partials2)
    n = x.shape[0]
    for name, v, shape in (
        ("gn_weight", gn_weight, (channels,)),
        ("gn_bias", gn_bias, (channels,)),
        ("scale", scale, (n, channels)),
        ("shift", shift, (n, channels)),
    ):
        check_parameter(name, v, shape, x)
        if v is not None and not groups:
            raise ValueError(f"{name} needs a norm: groups must be a divisor of the {channels} channels, got 0")
    if isinstance(eps, bool) or not isinstance(eps, int | float) or not 0 < eps < float("inf"):
        raise ValueError(f"eps must be a finite number above 0, got {eps!r}")
    check_act(act)
    check_tensor("weight", weight)
    if weight.dim() != 4 or weight.shape[1] != channels or not weight.numel():
        raise ValueError(f"weight must have shape [Cout, {channels}, kh, kw], got {tuple(weight.shape)}")
    check_parameter("weight", weight, weight.shape, x)
    outputs = weight.shape[0]
    if bias is not None:
        check_tensor("bias", bias)
        if bias.shape not in ((outputs,), (n, outputs)):
            raise ValueError(f"bias must have shape ({outputs},) or ({n}, {outputs}), got {tuple(bias.shape)}")
        check_parameter("bias", bias, bias.shape, x)
    padding, shape = output_shape(x, weight, stride, padding, upsample)
    if residual is not None:
        check_kind("residual", residual, x)
        if residual.shape != shape:
            raise ValueError(f"residual must have the result's shape {shape}, got {tuple(residual.shape)}")
    y, found, _ = _op(
        *(x, x2, partials, partials2, groups, gn_weight, gn_bias, float(eps), scale, shift, act),
        *(weight, bias, residual, stride, padding, bool(upsample), bool(statistics)),
    )
    return (y, found) if statistics else y


def _check_inputs(x: Any, x2: Any, groups: Any, partials: Any, partials2: Any) -> int:
    """x, x2 and their statistics; returns C."""
    check_tensor("x", x)
    check_floating("x", x)
    if x.dim() != 4 or not x.shape[1] * x.shape[2] * x.shape[3]:
        raise ValueError(f"x must have shape [N, C, H, W] with at least one pixel, got {tuple(x.shape)}")
    if x2 is not None:
        check_kind("x2", x2, x)
        if x2.dim() != 4 or (x2.shape[0], *x2.shape[2:]) != (x.shape[0], *x.shape[2:]):
            raise ValueError(f"x2 must have shape ({x.shape[0]}, C, {x.shape[2]}, {x.shape[3]}), got {tuple(x2.shape)}")
    channels = x.shape[1] + (0 if x2 is None else x2.shape[1])
    if isinstance(groups, bool) or not isinstance(groups, int) or groups < 0 or (groups and channels % groups):
        raise ValueError(f"groups must be a divisor of the {channels} channels, or 0 for no norm, got {groups!r}")
    for name, p, of in (("partials", partials, x), ("partials2", partials2, x2)):
        if p is None:
            continue
        check_tensor(name, p)
        if of is None:
            raise ValueError("partials2 must be given with x2, got no x2")
        if p.dim() != 4 or p.shape[:2] != of.shape[:2] or p.shape[3] != 3 or p.shape[2] < 1:
            raise ValueError(f"{name} must have shape ({of.shape[0]}, {of.shape[1]}, P, 3), got {tuple(p.shape)}")
        if p.dtype is not compute_dtype(x):
            raise TypeError(f"{name} must be {compute_dtype(x)}, got {p.dtype}")
        check_device(name, p, x)
    return channels
