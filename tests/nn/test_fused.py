"""Blocks by themselves: inference by fused convolutions is that of their layers, and nothing is fused that should not be."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from oracle import needs_kernel
from torch import nn
from torch.nn import functional as F

from fastdiff.nn import (
    AttentionBlock,
    BottleneckBlock,
    ConvNormAct,
    DepthwiseSeparableConv2d,
    DownBlock,
    FiLM,
    GroupNorm,
    InceptionModule,
    ResidualBlock,
    TimeResidualBlock,
    UpBlock,
    VGGBlock,
    fused,
)
from fastdiff.nn.fused import Map, on_maps
from fastdiff.nn.fused.convolution import Convolution

pytestmark = needs_kernel("conv2d_fused")
X, SKIP, EMB = torch.randn(2, 16, 6, 5), torch.randn(2, 8, 12, 10), torch.randn(2, 6)
BLOCKS: dict[str, tuple[Callable[[], nn.Module], tuple[torch.Tensor, ...], int]] = {  # and how many convolutions it takes
    "residual": (lambda: TimeResidualBlock(16, 24, 6), (X, EMB), 3),
    "residual, scale": (lambda: TimeResidualBlock(16, 16, 6, "scale", groups=4), (X, EMB), 2),
    "residual, add, batch": (lambda: TimeResidualBlock(16, 16, 6, "add", norm="batch"), (X, EMB), 2),
    "down": (lambda: DownBlock(16, 8, 6), (X, EMB), 3),
    "up": (lambda: UpBlock(24, 8, 6, groups=8), (X, SKIP, EMB), 3),  # the sixth group has channels of both
    "up to an odd size": (lambda: UpBlock(24, 8, 6), (X, SKIP[:, :, 1:], EMB), 3),
    "attention": (lambda: AttentionBlock(16, head_dim=8), (X,), 2),
    "conv, norm, act": (lambda: ConvNormAct(16, 8, 3, 2), (X,), 1),
    "conv, norm, gelu, dilated": (lambda: ConvNormAct(16, 8, 3, dilation=2, act="gelu", bias=True), (X,), 1),
    "conv, group norm, act": (lambda: ConvNormAct(16, 8, 3, norm="group", act="silu"), (X,), 1),
    "conv, leaky": (lambda: ConvNormAct(16, 8, (3, 1), norm="none", act="leaky_relu"), (X,), 1),
    "vgg": (lambda: VGGBlock(16, 8, 2, batch_norm=True), (X,), 2),
    "basic": (lambda: ResidualBlock(16, 16), (X,), 2),
    "basic, projected": (lambda: ResidualBlock(16, 24, 2), (X,), 3),
    "bottleneck": (lambda: BottleneckBlock(16, 4, 16), (X,), 3),
    "bottleneck, projected": (lambda: BottleneckBlock(16, 4, 24, 2), (X,), 4),
    "inception": (lambda: InceptionModule(16, 8, 6, 8, 2, 4, 4), (X,), 6),
}


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[Convolution]:
    """The convolutions that have run fused."""
    found, own = [], Convolution.run
    monkeypatch.setattr(Convolution, "run", lambda self, *a: found.append(self) or own(self, *a))
    return found


@pytest.fixture(params=BLOCKS)
def block(request: pytest.FixtureRequest) -> tuple[nn.Module, tuple[torch.Tensor, ...], int]:
    torch.manual_seed(0)
    make, args, count = BLOCKS[request.param]
    block = make().eval()
    with torch.no_grad():
        for name, v in block.state_dict().items():
            if v.dim() == 1:
                v.uniform_(0.5, 1.5) if name.endswith(("weight", "var")) else v.normal_()
            elif v.dim() > 1:
                v.normal_().mul_(v[0].numel() ** -0.5)
    return block, args, count


def plain(block: nn.Module, *args: Any) -> torch.Tensor:
    """By the layers: on Maps no gradients are taken."""
    return block(*args).detach()


def test_equals_the_layers(block: tuple[nn.Module, tuple[torch.Tensor, ...], int], runs: list[Convolution]) -> None:
    net, args, count = block
    want = plain(net, *args)
    assert not runs
    with torch.no_grad():
        got = net(*args)
        assert len(runs) == count
        last = net(*(a.contiguous(memory_format=torch.channels_last) if a.dim() == 4 else a for a in args))
    assert got.is_contiguous()
    assert last.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(last, want, rtol=1e-4, atol=1e-4)


def test_an_image_of_one_channel_has_both_formats() -> None:
    block = ConvNormAct(1, 8).eval()
    with torch.no_grad():
        assert block(X[:, :1].contiguous()).is_contiguous()


def test_in_bf16_it_is_about_as_near_to_the_truth(block: tuple[nn.Module, tuple[torch.Tensor, ...], int]) -> None:
    net, args, _ = block
    truth = plain(copy.deepcopy(net).double(), *(a.double() for a in args))
    with torch.autocast("cpu", torch.bfloat16):
        layers = plain(net, *args)
        with torch.no_grad():
            got = net(*args)
    half, halves = copy.deepcopy(net).bfloat16(), [a.bfloat16() for a in args]
    layers_half = plain(half, *halves)
    with torch.no_grad():
        got_half = half(*halves)
    assert got_half.dtype is torch.bfloat16
    for own, of in ((got, layers), (got_half, layers_half)):
        error, allowed = (float((v.double() - truth).norm() / truth.norm()) for v in (own, of))
        assert error <= max(1.5 * allowed, 4e-3), (error, allowed)


class Chain(nn.Module):
    """What is not a block of ours: a network of a test."""

    def __init__(self, *layers: nn.Module, call: Callable[..., Any]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.call = call

    @on_maps
    def forward(self, *x: torch.Tensor) -> Any:
        return self.call(*self.layers, *x)


def conv(inputs: int = 16, outputs: int = 16, kernel: int = 3, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, **{"padding": kernel // 2} | options)


def twice(a: nn.Module, x: torch.Tensor) -> torch.Tensor:
    y = a(x)
    return y + F.relu(y)  # one result of two readers


def inplace(a: nn.Module, x: torch.Tensor) -> torch.Tensor:
    y = a(x)
    z = y
    F.relu(y, inplace=True)
    y += x
    return z


CHAINS: dict[str, tuple[list[nn.Module], Callable[..., Any]]] = {
    "two readers": ([conv()], twice),
    "in place": ([conv()], inplace),
    "norm of a norm": ([GroupNorm(4, 16), nn.GroupNorm(2, 16), conv()], lambda a, b, c, x: c(b(a(c(x))))),
    "norm of an activation": ([GroupNorm(4, 16), conv()], lambda a, c, x: c(a(F.silu(a(c(x)))))),
    "norm of a skip": ([GroupNorm(4, 32), conv(32)], lambda a, c, x: c(a(torch.cat((x, F.relu(x)), 1)))),
    "batch norm first": ([nn.BatchNorm2d(16), conv()], lambda a, c, x: c(F.relu(a(x)))),
    "two batch norms": ([nn.BatchNorm2d(16), conv()], lambda a, c, x: a(a(c(x)))),
    "batch norm of a sum": ([nn.BatchNorm2d(16), conv()], lambda a, c, x: a(c(x) + x)),
    "batch norm of the batch": ([nn.BatchNorm2d(16, track_running_stats=False), conv()], lambda a, c, x: a(c(x))),
    "bias of each image": ([conv()], lambda c, x: c(x) + x.mean((2, 3))[:, :, None, None] + x.mean((2, 3))[:, :, None, None]),
    "bias of a map": ([conv()], lambda c, x: c(F.relu(x) + x[:, :, :1, :1])),
    "a number added": ([conv()], lambda c, x: c(x) + 1),
    "factors": ([conv()], lambda c, x: c(x) * c(x)),
    "film of film": ([FiLM(6, 16, "silu"), conv()], lambda f, c, x: c(f(f(c(x), EMB), EMB))),
    "sum of two convolutions": ([conv(), conv()], lambda a, b, x: F.relu(a(x) + b(x))),
    "sum that broadcasts": ([conv(), nn.AdaptiveAvgPool2d((1, None))], lambda a, p, x: a(x) + p(x)),
    "doubled twice": ([conv(), nn.Upsample(scale_factor=2)], lambda c, u, x: c(u(u(c(x))))),
    "doubled by hand": ([conv()], lambda c, x: c(F.interpolate(x, scale_factor=(2, 2)))),
    "doubled otherwise": ([conv()], lambda c, x: c(F.interpolate(x, scale_factor=2, mode="bilinear"))),
    "norm of a doubled skip": (
        [GroupNorm(4, 32), conv(32)],
        lambda a, c, x: c(a(torch.cat((F.interpolate(x, size=(12, 10)),) * 2, 1))),
    ),
    "norm across a doubled map and a skip": (
        [GroupNorm(2, 24), conv(), conv(16, 8), conv(24)],
        lambda a, c, e, d, x: d(a(torch.cat((F.interpolate(c(x), size=(12, 10)), e(F.interpolate(x, size=(12, 10)))), 1))),
    ),
    "three parts": ([conv(48)], lambda c, x: c(torch.cat((x, x, x), 1))),
    "over height": ([conv()], lambda c, x: c(torch.cat((x, c(x)), 2))),
    "groups": ([conv(groups=4), nn.BatchNorm2d(16)], lambda a, b, x: F.relu(b(a(x))) + x),
    "uneven stride": ([conv(stride=(1, 2))], lambda a, x: F.relu(a(x))),
    "same": ([conv(16, 8, 4, padding="same")], lambda a, x: F.relu(a(x))),
    "slope": ([conv()], lambda a, x: F.leaky_relu(a(x), 0.3)),
    "gelu by tanh": ([conv()], lambda a, x: F.gelu(a(x), approximate="tanh")),
    "two activations": ([conv()], lambda a, x: a(F.silu(F.relu(a(x))))),
    "pooled": ([conv(), nn.MaxPool2d(2), nn.AvgPool2d(3, 1, 1)], lambda a, m, p, x: a(p(m(F.relu(a(x)))))),
    "features": ([conv(), nn.Linear(16, 3)], lambda a, f, x: f(a(x).mean((2, 3)))),
    "flattened": ([conv(), nn.Linear(16 * 30, 3)], lambda a, f, x: f(torch.flatten(a(x), 1))),
    "separable": ([DepthwiseSeparableConv2d(16, 8)], lambda a, x: a(x)),
    "several results": ([conv()], lambda a, x: {"y": a(x), "all": [F.relu(a(x)), x]}),
}


@pytest.mark.parametrize("case", CHAINS)
def test_whatever_torch_has_around_a_convolution(case: str, runs: list[Convolution]) -> None:
    torch.manual_seed(0)
    layers, call = CHAINS[case]
    net = Chain(*copy.deepcopy(layers), call=call).eval()
    with torch.no_grad():
        for name, v in net.state_dict().items():
            if v.dim() == 1:
                v.uniform_(0.5, 1.5) if name.endswith(("weight", "var")) else v.normal_()
        want = call(*net.layers, X)
        assert not runs
        got = net(X)
    assert runs
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_a_layer_of_another_class_is_not_run_on_maps() -> None:
    class Odd(nn.Conv2d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            assert type(x) is torch.Tensor
            return super().forward(x)

    net = Chain(Odd(16, 4, 3), call=lambda a, x: a(x)).eval()
    with torch.no_grad():
        assert not fused.serves(net, X)
        assert net(X).shape == (2, 4, 4, 3)


@pytest.mark.parametrize("wrong", ["channels", "size", "dtype"])
def test_errors_are_torchs(wrong: str) -> None:
    net = Chain(conv(padding=0), call=lambda a, x: a(x)).eval()
    x = {"channels": X[:, :5], "size": X[:, :, :2], "dtype": X.bfloat16()}[wrong]
    messages = []
    for run in (net.layers[0], net):
        with torch.no_grad(), pytest.raises(RuntimeError) as error:
            run(x)
        messages.append(str(error.value))
    assert messages[0] == messages[1]


def test_a_map_says_of_itself_what_its_tensor_would() -> None:
    layer, seen = conv(16, 8, 3, stride=2), []

    def call(a: nn.Module, x: Map) -> torch.Tensor:
        y = F.relu(a(torch.cat((x, x), 1)[:, :16] if isinstance(x, Map) else x))
        seen.append((tuple(y.shape), y.dtype, y.dim(), len(y), y.size(1), y.device.type))
        return y

    with torch.no_grad():
        Chain(layer, call=call).eval()(X)
        call(layer, X)
    assert seen[0] == seen[1] == ((2, 8, 3, 3), torch.float32, 4, 2, 8, "cpu")
