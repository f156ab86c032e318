"""The sampling loop on the device: a captured graph gives the images of the loop that goes row by row."""

from __future__ import annotations

import warnings

import pytest
import torch
from devices import DEVICE, needs_cuda
from torch import nn
from torch.testing import assert_close

from fastdiff.diffusion import SAMPLERS, NoiseScheduler, sample
from fastdiff.models import UNet

pytestmark = [pytest.mark.cuda, needs_cuda]
SHAPE = (4, 1, 8, 8)


def a_network() -> UNet:
    torch.manual_seed(0)
    network = UNet(1, 32, 64, channel_multipliers=(1, 2), num_res_blocks=1, attention_resolutions=(2,), num_classes=3)
    for module in (network.conv_out, *(m.proj for m in network.modules() if hasattr(m, "qkv"))):
        nn.init.normal_(module.weight, std=0.1)  # zero at first, which would hide all before them
    return network.to(DEVICE).eval()


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_graph_gives_the_same_images(sampler: str) -> None:
    network, scheduler = a_network(), NoiseScheduler(50, rescale_betas=True)
    options = {"sampler": sampler, "steps": 10, "spacing": "trailing", "labels": [0, 1, 2, 1], "guidance": 1.5, "seed": 3}
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # graph=None would say that it could not capture
        captured, chosen = (sample(network, scheduler, SHAPE, graph=graph, **options) for graph in (True, None))
    plain = sample(network, scheduler, SHAPE, graph=False, **options)
    assert plain.std() > 0.1
    for images in (captured, chosen):  # products may take another algorithm under capture
        assert_close(images, plain, rtol=0, atol=1e-3)


def test_batches_frames_and_precision() -> None:
    network, scheduler = a_network(), NoiseScheduler(50, rescale_betas=True)
    options = {"steps": 10, "seed": 3, "frames": 3, "threshold": 0.9, "batch_size": 2, "device": DEVICE}
    with torch.autocast("cuda", torch.bfloat16):
        (a, kept), (b, expected) = (sample(network, scheduler, SHAPE, graph=graph, **options) for graph in (True, False))
    assert_close(a, b, rtol=0, atol=0.05)
    assert_close(kept, expected, rtol=0, atol=0.05)
    assert not torch.equal(kept[0], kept[1])


def test_a_network_that_synchronises_goes_row_by_row() -> None:
    class Synchronises(nn.Module):
        def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return x * float(t[0]) / 50

    network, scheduler = Synchronises(), NoiseScheduler(50)
    with pytest.warns(UserWarning, match="without a CUDA graph"):
        x = sample(network, scheduler, SHAPE, seed=0, device=DEVICE)
    assert torch.equal(x, sample(network, scheduler, SHAPE, seed=0, device=DEVICE, graph=False))
    with pytest.raises(RuntimeError, match="graph=True"):
        sample(network, scheduler, SHAPE, seed=0, device=DEVICE, graph=True)
