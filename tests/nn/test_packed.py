"""Packed weights are made again whenever the layer's weight is another one."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from fastdiff.nn import packed, repack
from fastdiff.nn.packed import BatchNorm, Packed, joined, packed_weight
from fastdiff.ops import pack_conv_weight
from fastdiff.ops.conv2d_fused import gains_by_winograd
from fastdiff.training.flat import flatten


def made_of(layer: nn.Conv2d, dtype: torch.dtype = torch.float32) -> Packed:
    return packed_weight(layer.weight, dtype, True, layer.bias)


def packs(layer: nn.Conv2d, dtype: torch.dtype = torch.float32) -> bool:
    """Whether what is kept is the layer's weight."""
    made = made_of(layer, dtype)
    assert made.weight.dtype is dtype
    weight = layer.weight.detach().to(dtype)
    return torch.equal(made.packed, pack_conv_weight(weight, gains_by_winograd(weight, 1)))


@pytest.fixture
def layer() -> nn.Conv2d:
    return nn.Conv2d(16, 17, 3).eval()


def test_is_kept(layer: nn.Conv2d) -> None:
    assert made_of(layer).packed is made_of(layer).packed


def test_its_bias_is_the_layers_own(layer: nn.Conv2d) -> None:
    made_of(layer)
    layer.bias = None
    assert made_of(layer).bias is None


def test_a_linear_layer_is_a_1x1_convolution() -> None:
    layer = nn.Linear(6, 4).eval()
    made = packed_weight(layer.weight, torch.bfloat16, False)
    assert made.weight.shape == (4, 6, 1, 1)
    assert torch.equal(made.packed, pack_conv_weight(layer.weight.detach().bfloat16()[:, :, None, None]))


def test_follows_changes(layer: nn.Conv2d) -> None:
    assert packs(layer)
    assert packs(layer, torch.bfloat16)
    with torch.no_grad():
        layer.weight.mul_(2)
    assert packs(layer)
    layer.load_state_dict({k: v + 1 for k, v in layer.state_dict().items()})
    assert packs(layer)
    layer.double().float()
    assert packs(layer)
    layer.weight = nn.Parameter(torch.randn_like(layer.weight))
    assert packs(layer)
    assert packs(copy.deepcopy(layer))


@pytest.mark.parametrize("fused", [False, True])
def test_follows_optimizers(layer: nn.Conv2d, fused: bool) -> None:
    """A fused one does not tell torch that it changed a weight."""
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1, fused=fused)
    assert packs(layer)
    layer(torch.randn(1, 16, 4, 4)).sum().backward()
    optimizer.step()
    assert packs(layer)


def test_follows_an_optimizer_of_many_weights_as_one_tensor(layer: nn.Conv2d) -> None:
    flat = flatten(list(layer.parameters()))
    optimizer = torch.optim.SGD([flat], lr=0.1)
    assert packs(layer)
    flat.grad.fill_(1)
    optimizer.step()
    assert packs(layer)


def test_joined_layers_give_what_each_gives() -> None:
    owner, layers = nn.Identity().eval(), [nn.Linear(6, 3), nn.Linear(6, 5)]
    x = torch.randn(2, 6)
    with torch.no_grad():
        for _ in range(2):
            made = joined(owner, layers, torch.float32)
            assert made is joined(owner, layers, torch.float32)
            torch.testing.assert_close(
                nn.functional.linear(x, *made), torch.cat([layer(x) for layer in layers], 1), rtol=1e-6, atol=1e-6
            )
            layers[1].bias.add_(1)


def test_a_write_to_data_needs_repack(layer: nn.Conv2d) -> None:
    assert packs(layer)
    layer.weight.data.view(-1)[3] += 1
    repack(nn.Sequential(layer))
    assert packs(layer)


def test_what_is_gone_is_forgotten(layer: nn.Conv2d) -> None:
    made_of(layer)
    assert id(layer.weight) in packed._kept
    weight = id(layer.weight)
    del layer.weight
    assert weight not in packed._kept


def test_made_in_inference_mode_serves_outside(layer: nn.Conv2d) -> None:
    with torch.inference_mode():
        made = made_of(layer)
    assert not made.packed.is_inference()
    assert not made.weight.is_inference()


def test_a_batch_norm_is_folded_and_followed(layer: nn.Conv2d) -> None:
    norm, x = nn.BatchNorm2d(17).eval(), torch.randn(2, 16, 5, 5)
    nn.init.normal_(norm.weight)
    for change in (norm.running_mean, norm.running_var, norm.weight, norm.bias, layer.weight, layer.bias, None):
        with torch.no_grad():
            norm.eps = 0.5 if change is None else norm.eps
            if change is not None:
                change.add_(0.5)
            made = packed_weight(
                layer.weight, torch.float32, True, layer.bias,
                BatchNorm(norm.running_mean, norm.running_var, norm.weight, norm.bias, norm.eps),
            )  # fmt: skip
            assert torch.equal(made.packed, pack_conv_weight(made.weight, winograd=True))
            torch.testing.assert_close(nn.functional.conv2d(x, made.weight, made.bias), norm(layer(x)), rtol=1e-5, atol=1e-5)
