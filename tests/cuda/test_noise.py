"""Noise made on the device has the CPU kernels' bits, in every layout; a timestep out of range spoils its image alone."""

from __future__ import annotations

import pytest
import torch
from devices import DEVICE, needs_cuda, on_device
from noisy import SHAPES, layouts
from oracle import small

from fastdiff import ops
from fastdiff.ops._oracle import as_tuple

pytestmark = on_device
STEPS = [(0, 0), (17, 3), (2**32 - 1, 2**31 - 1)]
LARGE = (3, 1000003)  # many blocks, ragged


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    a, b = (x.cpu().contiguous() for x in (a, b))
    return torch.equal(a.view(torch.uint8), b.view(torch.uint8))


@pytest.mark.parametrize(("step", "purpose"), STEPS)
def test_normals(step: int, purpose: int) -> None:
    for shape in (*SHAPES, LARGE):
        seeds = ops.image_seeds(2**63 + 5, shape[0])
        got = ops.philox_normal(shape, seeds.to(DEVICE), step, purpose)
        assert same_bits(got, ops.philox_normal(shape, seeds, step, purpose)), shape


@pytest.mark.parametrize(("step", "purpose"), STEPS)
def test_uniforms(step: int, purpose: int) -> None:
    seeds = ops.image_seeds(3, 100_001)
    got = ops.philox_uniform(seeds.to(DEVICE), step, purpose)
    assert same_bits(got, ops.philox_uniform(seeds, step, purpose))


@needs_cuda
def test_plain_torch_on_the_device_gives_the_bits_too() -> None:
    for name in ("philox_normal", "philox_uniform"):
        op = ops.REGISTRY[name]
        for sample in small(op, torch.float32, DEVICE):
            assert same_bits(op(*sample.args), op.reference(*sample.args)), (name, sample.name)


def _steps(x: torch.Tensor, seeds: torch.Tensor) -> dict[str, tuple]:
    """Arguments of which nothing but the noise comes out."""
    device = x.device
    step, zero = torch.tensor(11, device=device), torch.zeros(len(x), dtype=torch.int64, device=device)
    row = torch.tensor([0.0, 0.0, 0.0, 0.0, 1.0, 0.0], device=device)
    one, nothing = torch.ones(1, device=device), torch.zeros(1, device=device)
    return {
        "q_sample": (x, zero, nothing, one, None, seeds, step, 3),
        "ddpm_step": (x, x, zero, row[None, :5], 1.0, seeds, step, 3),
        "sampler_step": (x, x, None, row, 1.0, seeds, step, 3),
    }


@pytest.mark.parametrize("name", ["q_sample", "ddpm_step", "sampler_step"])
def test_ops_make_this_noise_in_any_layout(name: str) -> None:
    for shape in SHAPES:
        seeds = ops.image_seeds(5, shape[0])
        noise = ops.philox_normal(shape, seeds, 11, 3)
        for x in layouts(torch.ones(shape, device=DEVICE)):
            got = as_tuple(ops.REGISTRY[name](*_steps(x, seeds.to(DEVICE))[name]))[0]
            assert same_bits(got, noise), (shape, x.stride())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["q_sample", "ddpm_step"])
def test_a_timestep_out_of_range_gives_nan_for_that_image_alone(name: str, dtype: torch.dtype) -> None:
    for sample in small(ops.REGISTRY[name], dtype, DEVICE):
        x, at = sample.args[0], 1 if name == "q_sample" else 2
        if x.shape[0] < 3 or not x.numel() or sample.args[at].shape[0] < 3:
            continue
        for wrong in (-1, 10, 2**62, -(2**63)):
            t = sample.args[at].clone()
            t[1] = wrong
            right = as_tuple(ops.REGISTRY[name](*sample.args))[0]
            got = as_tuple(ops.REGISTRY[name](*sample.args[:at], t, *sample.args[at + 1 :]))[0]
            assert got[1].isnan().all(), sample.name
            assert torch.equal(got[::2], right[::2]), sample.name


@needs_cuda
def test_the_public_functions_do_not_check_timesteps_there() -> None:
    """A check would wait for the GPU."""
    x, table = torch.randn(2, 3, device=DEVICE), torch.rand(10, 5, device=DEVICE)
    t, seeds = torch.tensor([3, 10], device=DEVICE), torch.arange(2, device=DEVICE)
    for got in (
        ops.q_sample(x, t, table[:, 0], table[:, 1], seeds=seeds)[0],
        ops.ddpm_step(x, x, t, table, seeds=seeds),
    ):
        assert got[0].isfinite().all()
        assert got[1].isnan().all()


def test_an_image_does_not_depend_on_its_batch() -> None:
    seeds = ops.image_seeds(3, 9).to(DEVICE)
    whole = ops.philox_normal((9, 2, 7, 5), seeds, 4)
    for part in (slice(0, 1), slice(4, 9), slice(8, 9)):
        assert torch.equal(ops.philox_normal((len(seeds[part]), 2, 7, 5), seeds[part], 4), whole[part])
    assert torch.equal(ops.philox_normal((9, 2, 7, 5), seeds[:1].expand(9), 4)[8], whole[0])  # strided seeds
