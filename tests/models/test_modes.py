"""The networks compiled, in channels_last, in bf16 and under autocast."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from fastdiff.models import SimpleUNet, UNet

LABELS = torch.tensor([1, 3])
T = torch.tensor([3, 700])

NETWORKS = [
    lambda: UNet(model_channels=8, time_embed_dim=16, channel_multipliers=(1, 2), num_res_blocks=1, num_classes=3),
    lambda: SimpleUNet(8, num_classes=3),
]


@pytest.fixture(params=NETWORKS, ids=["UNet", "SimpleUNet"])
def net(request) -> nn.Module:
    net = request.param()
    nn.init.normal_(net.conv_out.weight, std=0.1)
    return net


@pytest.mark.parametrize("training", [True, False])
def test_compiles_without_a_break(net: nn.Module, training: bool) -> None:
    torch._dynamo.reset()
    net.train(training)
    x = torch.randn(2, 1, 9, 7)
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    with torch.set_grad_enabled(training):
        got, want = compiled(x, T, LABELS), net(x, T, LABELS)
    assert_close(got, want)
    if training:
        parameters = list(net.parameters())
        got_grads = torch.autograd.grad(got.square().mean(), parameters)
        assert_close(got_grads, torch.autograd.grad(want.square().mean(), parameters))


def test_compiles_for_timesteps_that_are_numbers(net: nn.Module) -> None:
    torch._dynamo.reset()
    x = torch.randn(2, 1, 9, 7)
    compiled = torch.compile(net.eval(), backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        for t in (9, 8, 7, torch.tensor(6)):
            assert_close(compiled(x, t), net(x, t))


def test_channels_last_is_kept(net: nn.Module) -> None:
    x = torch.randn(2, 3, 9, 7)[:, :1].contiguous()
    want = net(x, T, LABELS)
    layouts = []
    net.conv_out.register_forward_pre_hook(lambda module, args: layouts.append(args[0].stride(1)))
    net.to(memory_format=torch.channels_last)
    got = net(x.contiguous(memory_format=torch.channels_last), T, LABELS)
    assert layouts == [1]  # the channel is the innermost dimension up to the end
    assert_close(got, want)


def test_autocast_and_bf16(net: nn.Module) -> None:
    x = torch.randn(2, 1, 9, 7)
    want = net(x, T, LABELS)
    with torch.autocast("cpu", torch.bfloat16):
        got = net(x, T, LABELS)
    assert got.dtype is torch.bfloat16
    got.float().square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    assert_close(got.float(), want, atol=0.05, rtol=0.05)
    half = net.bfloat16()(x.bfloat16(), T, LABELS)
    assert half.dtype is torch.bfloat16
    assert_close(half.float(), want, atol=0.05, rtol=0.05)
