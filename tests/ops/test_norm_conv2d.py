"""norm_conv2d and its backward: against torch's layers, across instruction sets and threads, partials, memory, errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from oracle import DTYPES, check_at_level, needs_kernel
from torch import nn
from torch.nn import functional as F

from fastdiff import ops
from fastdiff.ops._library import CPU_LEVELS
from fastdiff.ops.conv2d_fused import statistics_of

OP, BACKWARD = ops.REGISTRY["norm_conv2d"], ops.REGISTRY["norm_conv2d_backward"]
compiled_only = needs_kernel("norm_conv2d")


def images(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    x = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
    return x.contiguous(memory_format=torch.channels_last).requires_grad_()


def test_a_residual_block_and_its_gradients_are_those_of_torchs_layers() -> None:
    """Two convolutions of a concatenation, FiLM, a shortcut; statistics go from the one to the other."""
    torch.manual_seed(0)
    x, skip = images(2, 24, 7, 6), images(2, 40, 7, 6)
    norm1, norm2 = nn.GroupNorm(8, 64, eps=1e-4), nn.GroupNorm(4, 32)
    conv1, conv2, shortcut = nn.Conv2d(64, 32, 3, padding=1), nn.Conv2d(32, 32, 3, padding=1), nn.Conv2d(64, 32, 1)
    for norm in (norm1, norm2):
        nn.init.normal_(norm.weight), nn.init.normal_(norm.bias)
    emb, film = torch.randn(2, 32, requires_grad=True), torch.randn(2, 64, requires_grad=True)
    scale, shift = film.chunk(2, 1)
    leaves = [x, skip, emb, film, *(p for layer in (norm1, norm2, conv1, conv2, shortcut) for p in layer.parameters())]

    direct = ops.norm_conv2d(x, shortcut.weight, shortcut.bias, x2=skip)
    first = {"groups": 8, "gn_weight": norm1.weight, "gn_bias": norm1.bias, "eps": 1e-4, "act": "silu"}
    taken = {"partials": statistics_of(x.detach()), "partials2": statistics_of(skip.detach())}
    bias = conv1.bias + emb
    h, partials = ops.norm_conv2d(x, conv1.weight, bias, x2=skip, padding=1, statistics=True, **first, **taken)
    second = {"groups": 4, "gn_weight": norm2.weight, "gn_bias": norm2.bias, "scale": scale, "shift": shift, "act": "silu"}
    got = ops.norm_conv2d(h, conv2.weight, conv2.bias, residual=direct, padding=1, partials=partials, **second)
    assert not partials.requires_grad

    both = torch.cat((x, skip), 1)
    h = conv1(F.silu(norm1(both))) + emb[:, :, None, None]
    h = F.silu(norm2(h) * (1 + scale[:, :, None, None]) + shift[:, :, None, None])
    want = conv2(h) + shortcut(both)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    seed = torch.randn(want.shape)
    for g, w in zip(torch.autograd.grad(got, leaves, seed), torch.autograd.grad(want, leaves, seed), strict=True):
        torch.testing.assert_close(g, w, rtol=1e-3, atol=1e-4 * float(w.abs().max()))


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize(("kernel", "padding"), [(1, 0), (3, 0), (3, 1), (2, 3), (3, (4, 0, 0, 2)), (4, (0, 1, 5, 2))])
@pytest.mark.parametrize("upsample", [False, True])
def test_gradients_of_any_stride_and_padding(stride: int, kernel: int, padding: Any, upsample: bool) -> None:
    """Outputs that see nothing but zeros among them."""
    x, weight = images(2, 17, 5, 6, dtype=torch.float64), images(18, 17, kernel, kernel, dtype=torch.float64)
    y = ops.norm_conv2d(x, weight, stride=stride, padding=padding, upsample=upsample)
    read = F.interpolate(x, scale_factor=2) if upsample else x
    want = F.conv2d(F.pad(read, (padding,) * 4 if isinstance(padding, int) else padding), weight, stride=stride)
    seed = torch.randn_like(want)
    for g, w in zip(torch.autograd.grad(y, (x, weight), seed), torch.autograd.grad(want, (x, weight), seed), strict=True):
        torch.testing.assert_close(g, w)


@compiled_only
@pytest.mark.parametrize("level", CPU_LEVELS[:4])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_instruction_set(level: str, dtype: torch.dtype) -> None:
    for op in (OP, BACKWARD, ops.REGISTRY["pack_conv_weight"]):
        check_at_level(level, op, dtype)


@compiled_only
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(5, 64, 12, 12), (1, 40, 40, 9), (9, 48, 5, 5)], ids=str)
def test_gradients_do_not_depend_on_threads(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """However the work is cut: into chunks of images or parts of the outputs."""
    x, weight = images(*shape, dtype=dtype), images(100, shape[1], 3, 3)
    bias, gain = torch.zeros(100, requires_grad=True), torch.ones(shape[1], requires_grad=True)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3, 7):
            torch.set_num_threads(count)
            y = ops.norm_conv2d(x, weight, bias, groups=4, gn_weight=gain, act="silu", padding=1)
            results.append(torch.autograd.grad(y.float().square().sum(), (x, weight, bias, gain)))
    finally:
        torch.set_num_threads(threads)
    for gradients in results[1:]:
        assert all(map(torch.equal, gradients, results[0]))


@compiled_only
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_weights_gradient_over_many_bands_and_chunks(dtype: torch.dtype) -> None:
    """More tiles than are gathered at a time, in images of several bands, whose number is odd."""
    x, seed = images(3, 96, 96, 40, dtype=dtype), images(3, 160, 96, 40, dtype=dtype).detach()
    weight = images(160, 96, 3, 3)
    (got,) = torch.autograd.grad(ops.norm_conv2d(x, weight, act="silu", padding=1), weight, seed)
    plain, want = (
        nn.grad.conv2d_weight(F.silu(x.detach().to(d)), weight.shape, seed.to(d), padding=1) for d in (dtype, torch.float64)
    )
    error, allowed = (float((v.double() - want).norm() / want.norm()) for v in (got, plain))
    assert error <= 2 * allowed, (error, allowed)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_a_weights_gradient_lies_as_the_weight_does(layout: torch.memory_format) -> None:
    weight = images(20, 24, 3, 3, dtype=torch.bfloat16).detach().float().contiguous(memory_format=layout).requires_grad_()
    (gradient,) = torch.autograd.grad(ops.norm_conv2d(images(2, 24, 5, 5), weight, padding=1).sum(), weight)
    assert gradient.is_contiguous(memory_format=layout)


def test_only_what_is_asked_for_has_a_gradient() -> None:
    x, weight = images(2, 6, 5, 5).detach(), images(4, 6, 3, 3)
    gain = torch.ones(6, requires_grad=True)
    y = ops.norm_conv2d(x, weight, torch.zeros(4), groups=2, gn_weight=gain)
    assert y.requires_grad
    (dweight,) = torch.autograd.grad(y.square().sum(), weight, retain_graph=True)
    (dgain,) = torch.autograd.grad(y.square().sum(), gain)
    assert dweight.any()
    assert dgain.any()
    assert not ops.norm_conv2d(x, weight.detach(), groups=2).requires_grad


def test_backward_saves_its_inputs_and_statistics_alone() -> None:
    x, skip, weight = images(2, 24, 8, 8), images(2, 40, 8, 8), images(32, 64, 3, 3)
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda v: kept.append(v) or v, lambda v: v):
        ops.norm_conv2d(x, weight, x2=skip, groups=8, act="silu", padding=1, statistics=True)
    pointers = {v.data_ptr() for v in (x, skip, weight)}
    assert sum(v.numel() for v in kept if v.data_ptr() not in pointers) == 4 * 2 * 64  # mean, rstd, a, b


X, W = torch.randn(2, 6, 5, 5), torch.randn(4, 6, 3, 3)
P = statistics_of(X)
WRONG: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"x": X[0]}, ValueError, r"x must have shape \[N, C, H, W\] with at least one pixel, got \(6, 5, 5\)"),
    ({"x": X[:, :, :0]}, ValueError, r"x must have shape .* got \(2, 6, 0, 5\)"),
    ({"x2": X[:, :, :4]}, ValueError, r"x2 must have shape \(2, C, 5, 5\), got \(2, 6, 4, 5\)"),
    ({"groups": 4}, ValueError, "groups must be a divisor of the 6 channels, or 0 for no norm, got 4"),
    ({"gn_weight": torch.ones(5)}, ValueError, r"gn_weight must have shape \(6,\), got \(5,\)"),
    ({"groups": 0, "gn_bias": torch.ones(6)}, ValueError, "gn_bias needs a norm: groups must be a divisor of the 6 channels"),
    ({"scale": torch.ones(6)}, ValueError, r"scale must have shape \(2, 6\), got \(6,\)"),
    ({"eps": 0.0}, ValueError, "eps must be a finite number above 0, got 0.0"),
    ({"partials": P[:, :5]}, ValueError, r"partials must have shape \(2, 6, P, 3\), got \(2, 5, 1, 3\)"),
    ({"partials": P.half()}, TypeError, "partials must be torch.float32, got torch.float16"),
    ({"partials2": P}, ValueError, "partials2 must be given with x2, got no x2"),
    ({"weight": W[:, :5]}, ValueError, r"weight must have shape \[Cout, 6, kh, kw\], got \(4, 5, 3, 3\)"),
    ({"weight": W.half()}, TypeError, "weight must be torch.float32, got torch.float16"),
    ({"bias": torch.zeros(5)}, ValueError, r"bias must have shape \(4,\) or \(2, 4\), got \(5,\)"),
    ({"residual": X}, ValueError, r"residual must have the result's shape \(2, 4, 3, 3\), got \(2, 6, 5, 5\)"),
    ({"act": "tanh"}, ValueError, "act must be one of none, silu, relu, leaky_relu, gelu, got 'tanh'"),
    ({"stride": 0}, ValueError, "stride must be an integer of at least 1, got 0"),
    ({"padding": -1}, ValueError, "none negative"),
]


@pytest.mark.parametrize(("change", "error", "message"), WRONG, ids=lambda v: v[:30] if isinstance(v, str) else "")
def test_wrong_arguments(change: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ops.norm_conv2d(**{"x": X, "weight": W, "groups": 2} | change)
