"""Networks on the device: two training steps and a sample beside the CPU's, torch.compile, autocast."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from devices import DEVICE, needs_cuda, on_device
from torch.testing import assert_close

from fastdiff import ops
from fastdiff.diffusion import DiffusionModel
from fastdiff.models import UNet
from fastdiff.nn import fused
from fastdiff.ops._oracle import as_tuple

pytestmark = on_device


@pytest.fixture(autouse=True)
def _exact_products() -> Iterator[None]:
    """Without tf32, so that float32 results can be held against the CPU's."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def a_model(device: str) -> DiffusionModel:
    torch.manual_seed(0)
    unet = UNet(3, 32, 64, channel_multipliers=(1, 2), num_res_blocks=1, attention_resolutions=(2,), num_classes=3)
    for module in (unet.conv_out, *(m.proj for m in unet.modules() if hasattr(m, "qkv"))):
        torch.nn.init.normal_(module.weight, std=0.1)  # zero at first, which would hide all before them
    return DiffusionModel(network=unet, timesteps=50, label_dropout=0.1).to(device)


def trained(device: str) -> tuple[DiffusionModel, list[float]]:
    model = a_model(device)
    images = torch.rand(8, 3, 12, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    seeds, labels = ops.image_seeds(7, 8), torch.arange(8) % 3
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    return model, [model.train_step(images, optimizer, labels, seeds=seeds, step=step) for step in range(2)]


def test_two_training_steps_are_the_cpus() -> None:
    """Same noise, timesteps and dropped labels by their keys, so the same losses and weights but for rounding."""
    (model, losses), (on_cpu, expected) = trained(DEVICE), trained("cpu")
    assert expected[0] != expected[1]
    assert_close(torch.tensor(losses), torch.tensor(expected), rtol=1e-4, atol=0)
    for (name, a), b in zip(model.named_parameters(), on_cpu.parameters(), strict=True):
        assert a.device.type == torch.device(DEVICE).type
        assert_close(a.cpu(), b, rtol=1e-3, atol=1e-4, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "heun", "unipc"])
def test_samples_are_the_cpus(sampler: str) -> None:
    shape, labels = (4, 3, 12, 16), torch.tensor([0, 1, 2, 3])
    kwargs = {"sampler": sampler, "steps": 10, "seed": 5, "guidance": 1.5}
    got, want = (a_model(d).sample(shape, labels=labels.to(d), device=d, **kwargs) for d in (DEVICE, "cpu"))
    assert got.device.type == torch.device(DEVICE).type
    assert want.std() > 0.1
    assert_close(got.cpu(), want, rtol=0, atol=1e-2)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_autocast_and_channels_last(layout: torch.memory_format) -> None:
    network = a_model(DEVICE).network.to(memory_format=layout)
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)).to(DEVICE).contiguous(memory_format=layout)
    t, labels = torch.tensor([3, 40], device=DEVICE), torch.tensor([0, 2], device=DEVICE)
    want = network(x, t, labels)
    with torch.autocast(DEVICE, torch.bfloat16):
        got = network(x, t, labels)
    assert got.dtype is torch.bfloat16
    got.float().square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
    assert_close(got.float(), want, rtol=0.1, atol=0.1)


@needs_cuda
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_inference_by_fused_convolutions_is_that_of_the_layers(dtype: torch.dtype) -> None:
    network = a_model(DEVICE).network.eval()
    x, t = torch.randn(3, 3, 12, 16, device=DEVICE), torch.tensor([3, 20, 40], device=DEVICE)
    with torch.no_grad():
        truth = network(x, t)  # in float32 by the layers
        with torch.autocast(DEVICE, dtype):
            assert fused.serves(network, x)
            got = network(x, t)
            with fused.by_layers():
                plain = network(x, t)
    error, layers = (float((v.float() - truth).norm() / truth.norm()) for v in (got, plain))
    assert error <= 1.5 * layers + 1e-3, (error, layers)


@needs_cuda
def test_inductor_compiles_the_network_without_a_break() -> None:
    torch._dynamo.reset()
    network = a_model(DEVICE).network.eval()
    x, t = torch.randn(2, 3, 16, 16, device=DEVICE), torch.tensor([3, 40], device=DEVICE)
    with torch.no_grad():
        assert_close(torch.compile(network, fullgraph=True)(x, t), network(x, t), rtol=1e-3, atol=1e-3)


@needs_cuda
@pytest.mark.parametrize("name", ["film", "group_norm_silu", "attention", "sampler_step", "q_sample"])
def test_inductor_compiles_the_op_and_its_derivative(name: str) -> None:
    """Between torch's own operators, which inductor fuses on both sides."""
    op = ops.REGISTRY[name]
    sample = next(s for s in op.small_samples(torch.float32, DEVICE) if not s.tiny)
    index = next(i for i, a in enumerate(sample.args) if isinstance(a, torch.Tensor) and a.is_floating_point())

    def call(x: torch.Tensor) -> torch.Tensor:
        output = as_tuple(op(*sample.args[:index], x * 2, *sample.args[index + 1 :]))[0]
        return output.sin() + 1

    x = sample.args[index].detach().clone().requires_grad_()
    got, want = torch.compile(call, fullgraph=True)(x), call(x)
    assert_close(got, want)
    (a,), (b,) = (torch.autograd.grad(y.square().sum(), x) for y in (got, want))
    assert_close(a, b, rtol=1e-4, atol=1e-4)
