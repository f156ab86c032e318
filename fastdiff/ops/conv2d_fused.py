"""A convolution with all that surrounds it in a U-Net, in one pass over memory.

    h = act_in(a[n, c] x[n, c] + b[n, c])                       x the concatenation of x and x2 over channels
    y = act_out(conv(pad(up(h)), weight) + bias[n, co] + residual)
    partials[n, co, p] = (count, mean, M2) of y over the p-th rows of the image, M2 the sum of (y - mean)^2

With a and b from `norm_affine` the prologue is GroupNorm, FiLM and activation; `up` repeats each pixel 2 x 2; zeros are padded
after it. The statistics are those of the next norm, of y before it is rounded to its dtype. There are P = partials_of(...) of
them, each of whole rows: their number depends on the output's height and width alone.

Shapes: x [N, C1, H, W], x2 [N, C2, H, W]; weight [Cout, C1 + C2, kh, kw]; a, b [N, C1 + C2]; bias [Cout] or [N, Cout]; y and
residual [N, Cout, H', W'], H' = (up H + top + bottom - kh) / stride + 1. y is channels_last whatever x is.
Dtypes: x fp32, bf16, fp16 (double on CPU), so are x2, weight, residual; a, b and partials in the compute dtype, float32; bias
that or x's dtype. Products of bf16 are exact and added in float32; h is rounded to bf16 before them. A kernel with the bf16 dot
products of AVX512_BF16 or AMX takes numbers below 2^-126 for zeros. With weights split for precision high, h is split too. On
CUDA fp16 is multiplied as bf16 is, by tensor cores; float32 is multiplied and added in float32, never in TF32.
It has no derivative: `norm_conv2d` has.
Source: the normalisation of Ho et al. 2020, "Denoising Diffusion Probabilistic Models", appendix B.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.nn import functional as F

from ._activation import activate
from ._checks import check_act, check_device, check_floating, check_tensor
from ._define import NATIVE_FLOATS, Sample, define
from ._layout import compute_dtype, per_channel
from ._library import multiplies_tiles
from ._precision import splits_float32
from .pack_conv_weight import order_of, pack_conv_weight
from .pack_conv_weight import reference as pack

Maybe = torch.Tensor | None
_NoAutocast = torch._C._DisableAutocast  # for every device at once, and the reference is traced on meta, which has none
FEW_PIXELS, LARGE_WEIGHT = 64, 1 << 20  # a weight of this many numbers does not stay in a core's cache
PIXELS_OF_A_PART = 128  # of which statistics are taken together, at least, where there are as many


def partials_of(height: int, width: int) -> tuple[int, int]:
    """Rows of an image whose statistics are taken together, and how many such parts it has."""
    rows = -(-PIXELS_OF_A_PART // max(width, 1))
    rows = min(rows + rows % 2, max(height, 1))  # even: kernels may take two rows at a time
    return rows, -(-height // rows)


def reference(
    x: torch.Tensor, x2: Maybe, weight: torch.Tensor, packed: torch.Tensor, *rest: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    return _convolution(compute_dtype(x), x, x2, weight, *rest)


def _plain(
    x: torch.Tensor, x2: Maybe, weight: torch.Tensor, packed: torch.Tensor, *rest: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """By torch's operators in x's dtype."""
    return _convolution(x.dtype, x, x2, weight, *rest)


def _convolution(
    dtype: torch.dtype,
    x: torch.Tensor,
    x2: Maybe,
    weight: torch.Tensor,
    a: Maybe,
    b: Maybe,
    act_in: str,
    bias: Maybe,
    residual: Maybe,
    act_out: str,
    stride: int,
    padding: Sequence[int],
    upsample: bool,
    statistics: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    with _NoAutocast():  # the op casts nothing
        wide = compute_dtype(x)
        h = (x if x2 is None else torch.cat((x, x2), 1)).to(wide)
        if a is not None:
            h = h * per_channel(a, h) + per_channel(b, h)
        h = activate(h, act_in).to(dtype)
        if upsample:
            h = h.repeat_interleave(2, 2).repeat_interleave(2, 3)
        y = F.conv2d(F.pad(h, tuple(padding)), weight.to(dtype), stride=stride)
        if bias is not None:
            y = y + per_channel(bias.to(dtype), y)
        if residual is not None:
            y = y + residual.to(dtype)
        y = activate(y, act_out)
        partials = statistics_of(y.to(wide)) if statistics else y.new_empty((*y.shape[:2], 0, 3), dtype=wide)
    return torch.empty_like(y, dtype=x.dtype, memory_format=torch.channels_last).copy_(y), partials


def statistics_of(y: torch.Tensor) -> torch.Tensor:
    """The partials [N, C, P, 3] of y [N, C, H, W]."""
    n, c, height, width = y.shape
    rows, parts = partials_of(height, width)
    found = []
    for part in y.split(rows, 2):
        pixels = part.flatten(2)
        mean = pixels.mean(2)
        m2 = (pixels - mean[..., None]).square().sum(2)
        found.append(torch.stack((torch.full_like(mean, pixels.shape[2]), mean, m2), -1))
    return torch.stack(found, 2) if parts else y.new_empty(n, c, 0, 3)


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
        affine: bool = True,
        acts: tuple[str, str] = ("silu", "none"),
        bias: str = "channel",
        residual: bool = False,
        stride: int = 1,
        padding: Sequence[int] | None = None,
        upsample: bool = False,
        statistics: bool = True,
        winograd: bool = False,
        large: bool = False,
    ) -> Sample:
        kh, kw = (kernel, kernel) if isinstance(kernel, int) else kernel
        channels = x.shape[1] + (0 if x2 is None else x2.shape[1])
        weight = normal(outputs, channels, kh, kw) * (channels * kh * kw) ** -0.5
        a, b = (1 + 0.5 * normal(x.shape[0], channels, dtype=wide), normal(x.shape[0], channels, dtype=wide))
        padding = padding or [kw // 2, kw // 2, kh // 2, kh // 2]
        up = 2 if upsample else 1
        height = (up * x.shape[2] + padding[2] + padding[3] - kh) // stride + 1
        width = (up * x.shape[3] + padding[0] + padding[1] - kw) // stride + 1
        biases = {"": None, "channel": normal(outputs, dtype=wide), "image": normal(x.shape[0], outputs)}
        args = (
            *(x, x2, weight, pack(weight, *order_of(dtype, device), winograd)),
            *((a, b) if affine else (None, None)),
            acts[0],
            biases[bias],
            images(x.shape[0], outputs, height, width) if residual else None,
            acts[1],
            *(stride, list(padding), upsample, statistics),
        )
        return Sample(name, args, large=large)

    yield make("all of it", images(2, 32, 9, 7), 32, residual=True, bias="image")
    yield make("ragged channels", images(3, 7, 6, 5), 5, acts=("silu", "relu"))
    yield make("plain", images(2, 33, 8, 8), 40, affine=False, acts=("none", "none"), bias="", statistics=False)
    yield make("1x1", images(2, 48, 7, 7), 96, 1, acts=("none", "gelu"))
    yield make("stride 2", images(2, 32, 9, 8), 24, stride=2)
    yield make("stride 2, padded at the end", images(2, 32, 8, 8), 24, stride=2, padding=[0, 1, 0, 1])
    yield make("upsampled", images(2, 32, 5, 4), 32, upsample=True, affine=False, acts=("none", "none"))
    yield make("upsampled norm", images(1, 20, 4, 5), 12, upsample=True)
    yield make("a skip", images(2, 32, 7, 7), 64, x2=images(2, 64, 7, 7))
    yield make("a skip, ragged", images(2, 20, 6, 6), 8, x2=images(2, 9, 6, 6), residual=True)
    yield make("wide row", images(1, 16, 3, 61), 33)
    yield make("several parts", images(1, 40, 28, 28), 32, residual=True)
    yield make("one pixel", images(3, 64, 1, 1), 32)
    yield make("images together", images(5, 20, 4, 5), 40, residual=True, bias="image")
    yield make("uneven kernel", images(2, 10, 8, 9), 6, (2, 5), padding=[1, 3, 0, 1])
    yield make("stride 3, 4x4", images(1, 12, 11, 13), 10, 4, stride=3, padding=[2, 0, 1, 1])
    yield make("leaky", images(2, 16, 6, 26), 16, acts=("leaky_relu", "leaky_relu"), bias="image", statistics=False)
    yield make("NCHW", normal(2, 18, 6, 5), 20)
    yield make("sliced", images(4, 24, 6, 10)[:, 2:22, :, ::2], 16, residual=True)
    yield make("no images", images(0, 16, 4, 4), 8)
    yield make("tiles", images(2, 32, 8, 6), 32, residual=True, bias="image", winograd=True)
    yield make("tiles, odd", images(2, 20, 9, 7), 33, acts=("silu", "silu"), winograd=True)
    yield make("tiles, one pixel", images(2, 16, 1, 1), 16, winograd=True)
    yield make("tiles, several parts", images(1, 40, 27, 28), 32, winograd=True)
    yield make("tiles of a skip", images(2, 20, 6, 6), 40, x2=images(2, 9, 6, 6), winograd=True)
    yield make("tiles, upsampled", images(2, 32, 5, 4), 32, upsample=True, affine=False, acts=("none", "none"), winograd=True)
    yield make("tiles, wide, padded at the end", images(1, 16, 3, 61), 16, padding=[0, 2, 0, 1], winograd=True)
    for n, c, size in ((16, 128, 28), (16, 128, 14), (16, 128, 7), (1, 128, 28), (4, 256, 16)):
        yield make(
            f"{n}x{c}x{size}x{size}", images(n, c, size, size), c, residual=True, bias="image", winograd=True, large=True
        )


_op = define(
    "conv2d_fused(Tensor x, Tensor? x2, Tensor weight, Tensor packed, Tensor? a, Tensor? b, str act_in, Tensor? bias, "
    "Tensor? residual, str act_out, int stride, int[] padding, bool upsample, bool statistics) -> (Tensor, Tensor)",
    reference,
    samples=_samples,
    native=NATIVE_FLOATS,
    plain=_plain,
)


def conv2d_fused(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: Maybe = None,
    *,
    x2: Maybe = None,
    packed: Maybe = None,
    a: Maybe = None,
    b: Maybe = None,
    act_in: str = "none",
    residual: Maybe = None,
    act_out: str = "none",
    stride: int = 1,
    padding: int | Sequence[int] = 0,
    upsample: bool = False,
    statistics: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """act_out(conv(act_in(a x + b), weight) + bias + residual), channels_last.

    With `statistics` the result is a pair: that, and its partials [N, Cout, P, 3] for `norm_affine`.

    x: [N, C1, H, W]; x2: [N, C2, H, W], whose channels follow x's without being copied; fp32, bf16, fp16 or double.
    weight: [Cout, C1 + C2, kh, kw] in x's dtype. packed: `pack_conv_weight(weight)`, which a caller may keep; else it is made
        in each call that needs it. fp32 is multiplied as `fastdiff.set_float32_precision` said when it was made.
    bias: [Cout], or [N, Cout] for one of each image (a time embedding); float32 or x's dtype.
    a, b: [N, C1 + C2] in float32 (double for double), both or none: from `norm_affine`.
    act_in, act_out: none, silu, relu, leaky_relu or gelu. residual: like the result, in x's dtype.
    stride: at least 1. padding: of zeros, one number, or (left, right, top, bottom). upsample: nearest, 2x, before padding.
    Not differentiable. Raises TypeError for a wrong type or dtype, ValueError for a wrong shape, value or device, naming the
    argument.
    """
    _check_tensors(x, x2, weight, a, b, bias, residual)
    check_act(act_in, "act_in")
    check_act(act_out, "act_out")
    padding, shape = output_shape(x, weight, stride, padding, upsample)
    if residual is not None and residual.shape != shape:
        raise ValueError(f"residual must have the result's shape {shape}, got {tuple(residual.shape)}")
    if packed is None:
        packed = pack_conv_weight(weight, gains_by_winograd(weight, stride, shape[2] * shape[3]), is_split(weight))
    y, partials = _op(x, x2, weight, packed, a, b, act_in, bias, residual, act_out, stride, padding, bool(upsample), statistics)
    return (y, partials) if statistics else y


def output_shape(
    x: torch.Tensor, weight: torch.Tensor, stride: Any, padding: Any, upsample: bool
) -> tuple[list[int], tuple[int, ...]]:
    """The padding as four numbers, and the shape of the result; or an error about one of the arguments."""
    if isinstance(stride, bool) or not isinstance(stride, int) or stride < 1:
        raise ValueError(f"stride must be an integer of at least 1, got {stride!r}")
    padding = [padding] * 4 if isinstance(padding, int) else list(padding)
    if len(padding) != 4 or any(not isinstance(p, int) or p < 0 for p in padding):
        raise ValueError(f"padding must be a number or (left, right, top, bottom), none negative, got {tuple(padding)}")
    up = 2 if upsample else 1
    kh, kw = weight.shape[2:]
    height, width = up * x.shape[2] + padding[2] + padding[3], up * x.shape[3] + padding[0] + padding[1]
    if height < kh or width < kw:
        raise ValueError(f"x must be at least as large as the kernel of {kh}x{kw}, got {height}x{width} with its padding")
    return padding, (x.shape[0], weight.shape[0], (height - kh) // stride + 1, (width - kw) // stride + 1)


def gains_by_winograd(
    weight: torch.Tensor, stride: int, pixels: int = FEW_PIXELS + 1, dtype: torch.dtype | None = None
) -> bool:
    """Whether a convolution's weights are best packed for Winograd's tiles: 3x3, and channels enough to pay for transforms.

    pixels: of an output image. Few of them do not pay for large weights, of which tiles have 16 numbers for 9.
    dtype: that is computed in, the weight's own unless given. AMX multiplies too fast for transforms to pay.
    """
    if weight.device.type == "cpu" and multiplies_tiles():
        dtype = weight.dtype if dtype is None else dtype
        if dtype is torch.bfloat16 or (dtype is torch.float32 and splits_float32()):
            return False
    if pixels <= FEW_PIXELS and weight.numel() >= LARGE_WEIGHT:
        return False
    return tuple(weight.shape[2:]) == (3, 3) and stride == 1 and min(weight.shape[:2]) >= 16


def is_split(weight: torch.Tensor) -> bool:
    """Whether a convolution's weights are best packed as two bfloat16 each."""
    return weight.dtype is torch.float32 and weight.device.type == "cpu" and splits_float32()


def _check_tensors(x: Any, x2: Any, weight: Any, a: Any, b: Any, bias: Any, residual: Any) -> None:
    check_tensor("x", x)
    check_floating("x", x)
    if x.dim() != 4:
        raise ValueError(f"x must have shape [N, C, H, W], got {tuple(x.shape)}")
    n, channels = x.shape[:2]
    if x2 is not None:
        check_kind("x2", x2, x)
        if x2.dim() != 4 or (x2.shape[0], *x2.shape[2:]) != (n, *x.shape[2:]):
            raise ValueError(f"x2 must have shape ({n}, C, {x.shape[2]}, {x.shape[3]}), got {tuple(x2.shape)}")
        channels += x2.shape[1]
    check_kind("weight", weight, x)
    if weight.dim() != 4 or weight.shape[1] != channels or not weight.numel():
        raise ValueError(f"weight must have shape [Cout, {channels}, kh, kw], got {tuple(weight.shape)}")
    if (a is None) != (b is None):
        raise ValueError(f"{'a' if a is None else 'b'} must be given with {'b' if a is None else 'a'}, got None")
    for name, v in (("a", a), ("b", b)):
        if v is None:
            continue
        check_tensor(name, v)
        if v.shape != (n, channels):
            raise ValueError(f"{name} must have shape ({n}, {channels}), got {tuple(v.shape)}")
        if v.dtype is not compute_dtype(x):
            raise TypeError(f"{name} must be {compute_dtype(x)}, got {v.dtype}")
        check_device(name, v, x)
    if bias is not None:
        check_tensor("bias", bias)
        outputs = weight.shape[0]
        if bias.shape not in ((outputs,), (n, outputs)):
            raise ValueError(f"bias must have shape ({outputs},) or ({n}, {outputs}), got {tuple(bias.shape)}")
        if bias.dtype not in (x.dtype, compute_dtype(x)):
            raise TypeError(f"bias must be {compute_dtype(x)} or x's dtype {x.dtype}, got {bias.dtype}")
        check_device("bias", bias, x)
    if residual is not None:
        check_kind("residual", residual, x)


def check_kind(name: str, v: Any, x: torch.Tensor) -> None:
    """x's dtype and device."""
    check_tensor(name, v)
    if v.dtype is not x.dtype:
        raise TypeError(f"{name} must have x's dtype {x.dtype}, got {v.dtype}")
    check_device(name, v, x)
