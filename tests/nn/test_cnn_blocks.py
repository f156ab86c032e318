"""Blocks of classification networks, by torch's functions."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from fastdiff.nn import (
    BottleneckBlock,
    Conv2d,
    ConvNormAct,
    DepthwiseSeparableConv2d,
    InceptionModule,
    ResidualBlock,
    VGGBlock,
    conv_block,
)

X = torch.randn(2, 6, 9, 8)


def shown(module: nn.Module) -> list[str]:
    return [type(m).__name__ for m in module]


@pytest.mark.parametrize("batch_norm", [False, True])
def test_vgg_block(batch_norm: bool) -> None:
    block = VGGBlock(in_channels=6, out_channels=8, num_convs=2, batch_norm=batch_norm)
    assert shown(block) == [*(["Conv2d", *["BatchNorm2d"] * batch_norm, "ReLU"] * 2), "MaxPool2d"]
    h = X
    for conv in (m for m in block if isinstance(m, nn.Conv2d)):
        h = F.conv2d(h, conv.weight, conv.bias, padding=1)
        h = F.relu(F.batch_norm(h, None, None, training=True) if batch_norm else h)
    assert_close(block(X), F.max_pool2d(h, 2))
    with pytest.raises(ValueError, match="num_convs must be at least 1, got 0"):
        VGGBlock(6, 8, 0)


def normed(x: torch.Tensor, conv: nn.Conv2d, norm: nn.BatchNorm2d, **options: int) -> torch.Tensor:
    assert conv.bias is None
    return F.batch_norm(F.conv2d(x, conv.weight, **options), None, None, norm.weight, norm.bias, True)


@pytest.mark.parametrize(("outputs", "stride"), [(6, 1), (6, 2), (8, 1)])
def test_residual_block(outputs: int, stride: int) -> None:
    block = ResidualBlock(in_channels=6, out_channels=outputs, stride=stride)
    h = F.relu(normed(X, block.conv1, block.bn1, stride=stride, padding=1))
    h = normed(h, block.conv2, block.bn2, padding=1)
    assert (block.downsample is None) == (outputs == 6 and stride == 1)
    shortcut = X if block.downsample is None else normed(X, *block.downsample, stride=stride)
    assert_close(block(X), F.relu(h + shortcut))


@pytest.mark.parametrize(("outputs", "stride"), [(6, 1), (12, 2)])
def test_bottleneck_block(outputs: int, stride: int) -> None:
    block = BottleneckBlock(in_channels=6, bottleneck_channels=3, out_channels=outputs, stride=stride)
    h = F.relu(normed(X, block.conv1, block.bn1))
    h = F.relu(normed(h, block.conv2, block.bn2, stride=stride, padding=1))
    h = normed(h, block.conv3, block.bn3)
    shortcut = X if block.downsample is None else normed(X, *block.downsample, stride=stride)
    assert_close(block(X), F.relu(h + shortcut))


@pytest.mark.parametrize("large_kernel", [5, 3])
@pytest.mark.parametrize("batch_norm", [False, True])
def test_inception_module(large_kernel: int, batch_norm: bool) -> None:
    block = InceptionModule(6, 4, 2, 5, 3, 2, 7, large_kernel, batch_norm)
    assert block.branch3[1].conv.weight.shape == (2, 3, large_kernel, large_kernel)

    def conv(layer: ConvNormAct, x: torch.Tensor) -> torch.Tensor:
        h = F.conv2d(x, layer.conv.weight, layer.conv.bias, padding=layer.conv.weight.shape[2] // 2)
        return F.relu(F.batch_norm(h, None, None, training=True, eps=1e-3) if batch_norm else h)

    pooled = F.max_pool2d(X, 3, 1, 1)
    paths = ((X, [block.branch1]), (X, block.branch2), (X, block.branch3), (pooled, [block.branch4[1]]))
    wanted = []
    for h, layers in paths:
        for layer in layers:
            h = conv(layer, h)
        wanted.append(h)
    assert_close(block(X), torch.cat(wanted, 1))
    assert block(X).shape == (2, 18, 9, 8)


def test_separable_convolution() -> None:
    block = DepthwiseSeparableConv2d(in_channels=6, out_channels=4, kernel_size=3, padding=1, stride=2)
    h = F.relu(normed(X, block[0], block[1], stride=2, padding=1, groups=6))
    assert_close(block(X), F.relu(normed(h, block[3], block[4])))
    assert sum(p.numel() for p in block.parameters()) == 6 * 9 + 12 + 24 + 8


def test_conv_norm_act() -> None:
    block = ConvNormAct(6, 64, (3, 1), dilation=2, norm="group", act="gelu")
    assert block.norm.num_groups == 32
    h = F.group_norm(F.conv2d(X, block.conv.weight, padding=(2, 0), dilation=2), 32)
    assert_close(block(X), F.gelu(h))
    assert ConvNormAct(6, 4, norm="none").conv.bias is not None
    assert ConvNormAct(6, 4, 4, stride=2, padding=1)(X).shape == (2, 4, 4, 4)
    with pytest.raises(ValueError, match="norm must be one of batch, group, none, got 'layer'"):
        ConvNormAct(6, 4, norm="layer")
    with pytest.raises(ValueError, match="act must be one of none, relu, silu, leaky_relu, gelu, got 'tanh'"):
        ConvNormAct(6, 4, act="tanh")


def test_conv_block() -> None:
    block = conv_block(6, 4, k=5, s=2, p=1)
    assert shown(block) == ["Conv2d", "BatchNorm2d", "ReLU"]
    assert isinstance(block[0], Conv2d)
    assert_close(block(X), F.relu(normed(X, block[0], block[1], stride=2, padding=1)))
