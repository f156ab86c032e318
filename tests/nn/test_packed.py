"""Packed weights are made again whenever the layer's weight is another one."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from fastdiff.nn import repack
from fastdiff.nn.packed import joined, packed_weight
from fastdiff.ops import pack_conv_weight
from fastdiff.training.flat import flatten


def packs(layer: nn.Module, dtype: torch.dtype = torch.float32) -> bool:
    """Whether what is kept is the layer's weight."""
    made = packed_weight(layer, dtype)
    assert made.weight.dtype is dtype
    return torch.equal(made.packed, pack_conv_weight(layer.weight.detach().to(dtype), winograd=True))


@pytest.fixture
def layer() -> nn.Conv2d:
    return nn.Conv2d(16, 17, 3).eval()


def test_is_kept_in_eval_alone(layer: nn.Conv2d) -> None:
    assert packed_weight(layer, torch.float32) is packed_weight(layer, torch.float32)
    layer.train()
    assert packed_weight(layer, torch.float32) is not packed_weight(layer, torch.float32)


def test_tiles_where_they_gain() -> None:
    for layer in (nn.Conv2d(16, 16, 3, stride=2), nn.Conv2d(16, 16, 1), nn.Conv2d(3, 16, 3)):
        assert torch.equal(packed_weight(layer.eval(), torch.float32).packed, pack_conv_weight(layer.weight))


def test_a_linear_layer_is_a_1x1_convolution() -> None:
    layer = nn.Linear(6, 4).eval()
    made = packed_weight(layer, torch.bfloat16)
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


def test_made_in_inference_mode_serves_outside(layer: nn.Conv2d) -> None:
    with torch.inference_mode():
        made = packed_weight(layer, torch.float32)
    assert not made.packed.is_inference()
    assert not made.weight.is_inference()
