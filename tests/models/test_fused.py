"""A U-Net by fused convolutions is that of its layers: inference, and training with its gradients."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from oracle import needs_kernel
from torch import nn

from fastdiff import ops
from fastdiff.models import SimpleUNet, UNet
from fastdiff.nn import fused
from fastdiff.nn.fused.convolution import Convolution
from fastdiff.nn.fused.trained import TrainedConvolution

T = torch.tensor([1, 500, 999])
CASES: dict[str, dict[str, Any]] = {
    "scale_shift": {},
    "scale": {"conditioning": "scale", "groups": 4},
    "add": {"conditioning": "add", "groups": 4},
    "instance": {"norm": "instance"},
    "batch": {"norm": "batch"},
    "labels": {"num_classes": 3},
    "channels that are no multiple": {"model_channels": 12, "head_dim": 3},
    "more outputs": {"in_channels": 3, "out_channels": 6},
    "zeros on the right and below": {"downsample_padding": 0},
    "no norm in the middle": {"middle_groups": 0, "head_dim": "all"},
    "no attention": {"middle_attention": False, "attention_resolutions": (), "channel_multipliers": (1, 1.5)},
}
pytestmark = needs_kernel("conv2d_fused")


def made(**options: Any) -> UNet:
    torch.manual_seed(0)
    options = {"model_channels": 16, "time_embed_dim": 32, "channel_multipliers": (1, 2), "num_res_blocks": 1} | options
    net = UNet(**options).eval()
    for p in net.parameters():  # some start at zero, which would hide what they multiply
        if not p.any():
            nn.init.normal_(p, std=0.1)
    return net


def outputs(net: UNet | SimpleUNet, x: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> tuple[torch.Tensor, torch.Tensor]:
    """By fused convolutions, and by layers."""
    calls = []
    own = Convolution.run
    with torch.no_grad(), monkeypatch.context() as patch:
        patch.setattr(Convolution, "run", lambda *a: calls.append(1) or own(*a))
        by_fused = net(x, T)
        assert len(calls) > 10
        calls.clear()
        with fused.by_layers():
            by_layers = net(x, T)
        assert not calls
    return by_fused, by_layers


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("size", [(8, 8), (9, 7)], ids=str)
def test_equals_the_layers(case: str, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    net = made(**CASES[case])
    got, want = outputs(net, torch.randn(3, net.in_channels, *size), monkeypatch)
    assert (got.shape, got.dtype) == (want.shape, want.dtype)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_the_simple_unet_equals_its_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    net = SimpleUNet(16, num_classes=3).eval()
    nn.init.normal_(net.conv_out.weight, std=0.1)
    got, want = outputs(net, torch.randn(3, 1, 9, 8), monkeypatch)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_in_bf16_it_is_about_as_near_to_the_truth_as_the_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = made(model_channels=32), torch.randn(3, 1, 12, 12)
    with torch.autocast("cpu", torch.bfloat16):
        got, plain = outputs(net, x, monkeypatch)
    assert got.dtype is plain.dtype is torch.bfloat16
    with torch.no_grad():
        truth = net.double()(x.double(), T)
    error, layers = (float((v.double() - truth).norm() / truth.norm()) for v in (got, plain))
    assert error <= 1.5 * layers, (error, layers)  # Winograd's tiles round sums of inputs and of weights to bf16


def test_weights_that_changed_count(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = made(), torch.randn(3, 1, 8, 8)
    outputs(net, x, monkeypatch)
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01, fused=True)
    net.train()(x, T).square().mean().backward()
    optimizer.step()
    got, want = outputs(net.eval(), x, monkeypatch)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


WHYS = ["training", "double", "hook", "forward", "parametrised", "dropout", "backward hook"]


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("why", WHYS)
def test_other_calls_go_by_the_layers(why: str, gradients: bool) -> None:
    dropout = 0.1 if why == "dropout" else 0.0
    net, x = made(dropout=dropout), torch.randn(3, 1, 8, 8)
    conv = net.middle[0].residual.conv1
    match why:
        case "training" | "dropout":
            net.train()
        case "backward hook":
            conv.register_full_backward_hook(lambda *_: None)
        case "double":
            x = x.double()
        case "hook":
            conv.register_forward_hook(lambda *_: None)
        case "forward":
            conv.forward = lambda v: v
        case "parametrised":
            nn.utils.parametrizations.weight_norm(conv)
    answers = fused.trains if gradients else fused.serves
    with torch.set_grad_enabled(gradients):
        assert answers(net, x) == (why == ("training" if gradients else "backward hook"))
        assert answers(made(), torch.randn(3, 1, 8, 8))
    with torch.set_grad_enabled(not gradients):
        assert not answers(made(), torch.randn(3, 1, 8, 8))


def trained(net: UNet, x: torch.Tensor, monkeypatch: pytest.MonkeyPatch, served: bool = True) -> dict[str, torch.Tensor]:
    """The gradients of all parameters of a loss that sees every pixel."""
    net.zero_grad(set_to_none=True)
    calls = []
    with monkeypatch.context() as patch:
        own = TrainedConvolution.run
        patch.setattr(TrainedConvolution, "run", lambda *a: calls.append(1) or own(*a))
        with nullcontext() if served else fused.by_layers():
            y = net(x, T).double()
    assert (len(calls) > 10) == served
    seed = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (y * seed).sum().backward()
    return {name: p.grad.double() for name, p in net.named_parameters()}


@pytest.mark.parametrize("case", CASES)
def test_gradients_are_those_of_the_layers(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    net = made(**CASES[case]).train()
    x = torch.randn(3, net.in_channels, 9, 7)
    got, want = (trained(net, x, monkeypatch, served) for served in (True, False))
    largest = max(float(gradient.abs().max()) for gradient in want.values())  # some are zero: a bias before a norm
    for name, gradient in want.items():
        torch.testing.assert_close(got[name], gradient, rtol=1e-3, atol=1e-5 * largest, msg=name)


def test_gradients_in_bf16_are_about_as_near_to_the_truth_as_the_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = made(model_channels=32).train(), torch.randn(3, 1, 12, 12)
    with torch.autocast("cpu", torch.bfloat16):
        got, plain = (trained(net, x, monkeypatch, served) for served in (True, False))
    truth = trained(net.double(), x.double(), monkeypatch, served=False)
    error, layers = (sum(float((v[n] - truth[n]).square().sum()) for n in truth) ** 0.5 for v in (got, plain))
    assert error <= 1.5 * layers, (error, layers)


def test_the_images_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """As guidance by a classifier, or an attack, asks for it."""
    net, gradients = made(), []
    for served in (True, False):
        x = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(2)).requires_grad_()
        trained(net, x, monkeypatch, served)
        gradients.append(x.grad)
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("conditioning", ["scale_shift", "scale", "add"])
def test_down_to_a_single_pixel(conditioning: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a feature map has the shape of what the embedding adds to it."""
    net, x = made(conditioning=conditioning, groups=4).to(dtype), torch.randn(3, 1, 2, 2).to(dtype)
    got, want = outputs(net, x, monkeypatch)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4 if dtype is torch.float32 else 0.05)
    torch.testing.assert_close(net(x, T), want, rtol=1e-4, atol=1e-4 if dtype is torch.float32 else 0.05)  # with gradients


def test_a_nan_stays_in_its_image() -> None:
    net, x = made(), torch.randn(3, 1, 8, 8)
    with torch.no_grad():
        clean = net(x, T)
        x[1, 0, 0, 0] = torch.nan
        got = net(x, T)
    assert got[1].isnan().all()
    assert torch.equal(got[[0, 2]], clean[[0, 2]])


class _OnCuda(torch.Tensor):
    """Says that it lies on a GPU, which takes none."""

    @property
    def device(self) -> torch.device:
        return torch.device("cuda")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_on_cuda_it_serves_what_tensor_cores_multiply(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    x = _OnCuda(torch.zeros(1, 1, 8, 8, dtype=dtype))
    for compiled in ("CPU", "CUDA"):
        monkeypatch.setattr(type(ops.REGISTRY["conv2d_fused"]), "compiled", lambda self, key, there=compiled: key == there)
        with torch.no_grad():
            assert fused.serves(made(), x) is (compiled == "CUDA" and dtype.itemsize == 2)


def test_disabled_ops_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(ops.REGISTRY["conv2d_fused"]), "compiled", lambda self, key: False)
    with torch.no_grad():
        assert not fused.serves(made(), torch.randn(3, 1, 8, 8))
