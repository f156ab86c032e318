"""Every CUDA kernel in the simulator, held against float64 over the registry's samples; see README.md."""

from __future__ import annotations

import itertools

import pytest
import torch
from cuda_sim.build import build, missing
from cuda_sim.calls import Simulated, cuda_samples, load, wrong

from fastdiff import ops
from fastdiff.ops import Sample
from fastdiff.ops._oracle import as_tuple
from fastdiff.ops.pack_conv_weight import order_of

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))
NATIVE = [name for name, op in ops.REGISTRY.items() if "CUDA" in op.native]


@pytest.fixture(scope="module")
def simulated() -> dict[str, Simulated]:
    return load(build("plain"))


def test_no_cuda_kernel_is_without_its_simulation(simulated: dict[str, Simulated]) -> None:
    assert sorted(simulated) == sorted(NATIVE)


FLOATS = (torch.float32, torch.bfloat16, torch.float16)
ORDERED = [*itertools.product(FLOATS, ("up", "down", "1")), (torch.float64, "up")]  # doubles run too, but are not stated


@pytest.mark.parametrize(("dtype", "order"), ORDERED, ids=str)
@pytest.mark.parametrize("name", NATIVE)
def test_values_match_the_truth(
    name: str, dtype: torch.dtype, order: str, simulated: dict[str, Simulated], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the order of threads and blocks."""
    monkeypatch.setenv("CUDA_SIM_ORDER", order)
    for sample in cuda_samples(ops.REGISTRY[name], dtype):
        assert not wrong(simulated[name], sample), sample.name


@pytest.mark.parametrize("name", ["philox_normal", "philox_uniform"])
def test_noise_is_the_cpus_bit_for_bit(name: str, simulated: dict[str, Simulated]) -> None:
    for sample in cuda_samples(ops.REGISTRY[name], torch.float32):
        got, cpu = simulated[name](*sample.args), ops.REGISTRY[name](*sample.args)
        assert torch.equal(got.view(torch.int32), cpu.view(torch.int32)), sample.name


def _images(pixels: int, channels: int, memory_format: torch.memory_format) -> torch.Tensor:
    return torch.ones(2, channels, 1, pixels).contiguous(memory_format=memory_format)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("name", ["q_sample", "ddpm_step", "sampler_step"])
def test_ops_make_this_noise_in_any_layout(
    name: str, memory_format: torch.memory_format, simulated: dict[str, Simulated]
) -> None:
    """Counters that end within an image and span channels, and those that do not."""
    seeds, step, zero = torch.tensor([7, -(2**40)]), torch.tensor(11), torch.zeros(2, dtype=torch.int64)
    only_noise = torch.tensor([0.0, 0.0, 0.0, 0.0, 1.0, 0.0])
    for pixels, channels in itertools.product((1, 2, 3, 4, 5, 6, 7, 8, 257), (1, 2, 3, 4, 5)):
        x = _images(pixels, channels, memory_format)
        args = {
            "q_sample": (x, zero, torch.zeros(1), torch.ones(1), None, seeds, step, 3),
            "ddpm_step": (x, x, zero, only_noise[None, :5], 1.0, seeds, step, 3),
            "sampler_step": (x, x, None, only_noise, 1.0, seeds, step, 3),
        }[name]
        outputs, on_cpu = as_tuple(simulated[name](*args)), as_tuple(ops.REGISTRY[name](*args))
        noise = ops.philox_normal(x.shape, seeds, step, 3)
        assert torch.equal(outputs[0], noise), (pixels, channels)
        for output, expected in zip(outputs, on_cpu, strict=True):
            assert output.stride() == expected.stride()
            assert torch.equal(output.view(torch.int32), expected.view(torch.int32)), (pixels, channels)


@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (2, 4, 3, 3), (1, 3, 2, 2)], ids=str)
def test_channels_last_without_noise(shape: tuple[int, ...], simulated: dict[str, Simulated]) -> None:
    """No counters to keep together: these are walked in the order of memory."""
    x, m = (torch.randn(shape).contiguous(memory_format=torch.channels_last) for _ in range(2))
    t = torch.arange(shape[0])
    noising = (x, t, torch.tensor([0.8, 0.6]), torch.tensor([0.6, 0.8]), m, None, None, 0)
    step = (x, m, m + 1, torch.tensor([1.1, -0.4, 0.6, 0.5, 0.3, -0.2]), 1.0, None, None, 0)
    assert not wrong(simulated["q_sample"], Sample("given noise", noising))
    assert not wrong(simulated["sampler_step"], Sample("no noise", step))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("name", ["q_sample", "ddpm_step", "sampler_step"])
def test_images_that_no_vector_access_may_touch(name: str, dtype: torch.dtype, simulated: dict[str, Simulated]) -> None:
    """Whole counters, but each tensor starts one element past an aligned address."""
    for sample in cuda_samples(ops.REGISTRY[name], dtype):
        args = [_shifted(a) if isinstance(a, torch.Tensor) and a.dtype is dtype and a.dim() == 4 else a for a in sample.args]
        assert not wrong(simulated[name], Sample(sample.name, tuple(args))), sample.name


def _shifted(x: torch.Tensor) -> torch.Tensor:
    """x in memory that starts one element later than an allocation."""
    if not x.numel():
        return x
    dense = torch.empty_like(x)
    return torch.empty(x.numel() + 1, dtype=x.dtype)[1:].as_strided(dense.shape, dense.stride(), 1).copy_(x)


@pytest.mark.parametrize("name", ["q_sample", "ddpm_step"])
def test_a_timestep_out_of_range_gives_nan_for_its_image(name: str, simulated: dict[str, Simulated]) -> None:
    sample = next(s for s in cuda_samples(ops.REGISTRY[name], torch.float32) if s.name == "images")
    at = next(i for i, a in enumerate(sample.args) if isinstance(a, torch.Tensor) and a.dtype is torch.int64)
    for t in (torch.tensor([-1, 9, 10, 0]), torch.tensor([-1, 9, 10, 0], dtype=torch.int32)):
        args = (*sample.args[:at], t, *sample.args[at + 1 :])
        output, truth = (as_tuple(call(*args))[0] for call in (simulated[name], ops.REGISTRY[name].reference))
        assert output.flatten(1).isnan().all(1).tolist() == [True, False, True, False]
        assert torch.equal(output.isnan(), truth.isnan())
        assert torch.allclose(output, truth, equal_nan=True)


# x, output channels, kernel, stride, padding
CONVOLUTIONS = {
    "blocks of four warps side by side, idle ones": ((108, 20, 2, 2), 160, (3, 3), 1, [1, 1, 1, 1]),
    "a kernel of which only a row fits": ((1, 3, 40, 41), 5, (40, 40), 1, [0, 0, 0, 0]),
    "patches, in tiles of few rows and columns": ((1, 3, 64, 48), 40, (16, 16), 16, [0, 0, 0, 0]),
    "rows longer than a tile": ((1, 8, 3, 131), 8, (3, 3), 1, [1, 1, 1, 1]),
    "three fragments a warp": ((1, 16, 6, 28), 16, (3, 3), 1, [1, 1, 1, 1]),
    "more padding than image": ((2, 8, 1, 2), 8, (3, 3), 1, [3, 2, 1, 2]),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions_in_every_cut(name: str, dtype: torch.dtype, simulated: dict[str, Simulated]) -> None:
    """Which tiles there are, and how many warps side by side: what small samples leave out."""
    shape, outputs, (kh, kw), stride, padding = CONVOLUTIONS[name]
    torch.manual_seed(0)
    x = torch.randn(shape).to(dtype).contiguous(memory_format=torch.channels_last)
    weight = (torch.randn(outputs, shape[1], kh, kw) * (shape[1] * kh * kw) ** -0.5).to(dtype)
    packed = ops.REGISTRY["pack_conv_weight"].reference(weight, *order_of(dtype, "cuda"), False)
    a, b, bias = 1 + 0.5 * torch.randn(shape[:2]), torch.randn(shape[:2]), torch.randn(outputs)
    args = (x, None, weight, packed, a, b, "silu", bias, None, "relu", stride, padding, False, True)
    assert not wrong(simulated["conv2d_fused"], Sample(name, args))
