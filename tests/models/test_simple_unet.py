import json

import pytest
import torch
from torch.testing import assert_close

from fastdiff.models import NETWORKS, SimpleUNet


@pytest.mark.parametrize("base_channels", [32, 64])
def test_mnist_shapes(base_channels: int) -> None:
    net, sizes = SimpleUNet(base_channels=base_channels), []
    for block in (net.down_full, net.down_half, net.middle):
        block.register_forward_hook(lambda module, args, y: sizes.append(tuple(y.shape[1:])))
    x = torch.randn(2, 1, 28, 28)
    y = net(x, torch.tensor([0, 999]))
    assert_close(y, torch.zeros_like(x))  # the last convolution starts at zero
    c = base_channels
    assert sizes == [(c, 28, 28), (2 * c, 14, 14), (4 * c, 7, 7)]


@pytest.mark.parametrize("size", [(15, 15), (7, 9), (4, 5)])
def test_odd_sizes(size: tuple[int, int]) -> None:
    assert SimpleUNet(8, in_channels=3)(torch.randn(1, 3, *size), 0).shape == (1, 3, *size)


def test_skips_reach_the_way_up(awake) -> None:
    net, x = awake(SimpleUNet(8)), torch.randn(1, 1, 8, 8)
    net.middle.register_forward_hook(lambda module, args, y: torch.zeros_like(y))
    net(x, 0).square().sum().backward()
    assert net.down_half.conv2.weight.grad.abs().max() > 0
    assert net.down_full.conv2.weight.grad.abs().max() > 0


def test_time_and_label_matter_and_learn(awake) -> None:
    net, x, labels = awake(SimpleUNet(8, num_classes=3)), torch.randn(2, 1, 8, 8), torch.tensor([0, 2])
    y = net(x, 1, labels)
    assert (y - net(x, 500, labels)).abs().max() > 1e-3
    assert (y - net(x, 1)).abs().max() > 1e-3
    y.square().mean().backward()
    assert net.time_embedding.linear1.weight.grad.abs().max() > 0
    assert net.label_embedding.table.weight.grad.abs().sum(1).count_nonzero() == 2


@pytest.mark.parametrize("arguments", [{}, {"in_channels": 3, "time_embed_dim": 10, "num_classes": 2}])
def test_config_rebuilds_the_network(arguments: dict) -> None:
    net = SimpleUNet(8, **arguments)
    again = NETWORKS["SimpleUNet"](**json.loads(json.dumps(net.config)))
    assert again.config == net.config
    again.load_state_dict(net.state_dict())


def test_errors_are_those_of_the_unet() -> None:
    with pytest.raises(ValueError, match="x is too small"):
        SimpleUNet(8)(torch.zeros(1, 1, 3, 3), 0)
    with pytest.raises(ValueError, match="labels were given"):
        SimpleUNet(8)(torch.zeros(1, 1, 8, 8), 0, torch.tensor([0]))
