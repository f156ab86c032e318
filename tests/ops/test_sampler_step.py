"""sampler_step: the noise itself, where none is made, errors, the kernel's own checks."""

from __future__ import annotations

import math

import pytest
import torch
from noisy import CPU_LEVELS, SHAPES, cpu_level, layouts
from oracle import needs_kernel

from fastdiff import ops
from fastdiff.ops import philox_normal, sampler_step

X = torch.randn(2, 3, 4, 5)
C = torch.tensor([1.1, -0.4, 0.6, 0.5, 0.3, -0.2])
SEEDS = torch.tensor([7, 2**62 + 5])
NOISE_ALONE = torch.tensor([0.0, 0, 0, 0, 1, 0])

native = needs_kernel("sampler_step")


@native
@pytest.mark.parametrize("level", CPU_LEVELS)
def test_the_noise_is_that_of_philox_normal(level: str) -> None:
    for shape in SHAPES:
        seeds = ops.image_seeds(3, shape[0])
        noise = philox_normal(shape, seeds, 11, 2)
        for zeros in layouts(torch.zeros(shape)):
            with cpu_level(level):
                got, x0 = sampler_step(zeros, zeros, NOISE_ALONE, seeds=seeds, step=11, purpose=2)
            assert torch.equal(got, noise), shape
            assert not x0.any()
        with cpu_level(level):
            for dtype in (torch.bfloat16, torch.float16, torch.float64):
                zeros = layouts(torch.zeros(shape, dtype=dtype))[-1]
                got = sampler_step(zeros, zeros, NOISE_ALONE, seeds=seeds, step=11, purpose=2)[0]
                assert torch.equal(got, noise.to(dtype)), (shape, dtype)


def test_it_is_the_formula() -> None:
    m, previous = torch.randn_like(X), torch.randn_like(X)
    got, x0 = sampler_step(X, m, C, previous, clip=0.9, seeds=SEEDS, step=4)
    expected = (1.1 * X - 0.4 * m).clamp(-0.9, 0.9)
    noise = philox_normal(X.shape, SEEDS, 4, ops.Purpose.SAMPLER_STEP)
    torch.testing.assert_close(x0, expected)
    torch.testing.assert_close(got, 0.6 * expected + 0.5 * X + 0.3 * noise - 0.2 * previous)


def test_rows_of_coefficients_and_images_without_noise() -> None:
    rows = C * torch.tensor([[1.0], [0.5]])
    rows[1, 4] = 0
    got = sampler_step(X, X, rows, seeds=SEEDS)
    for n in range(2):
        one = sampler_step(X[n : n + 1], X[n : n + 1], rows[n], seeds=SEEDS[n : n + 1])
        assert torch.equal(got[0][n], one[0][0])
        assert torch.equal(got[1][n], one[1][0])
    assert torch.equal(got[0][1], sampler_step(X[1:], X[1:], rows[1])[0][0])
    strided = torch.stack((rows, rows), -1)[..., 0]
    assert torch.equal(sampler_step(X, X, strided, seeds=SEEDS)[0], got[0])


@pytest.mark.parametrize("clip", [None, 1.0])
def test_nan_and_infinity_in_x0(clip: float | None) -> None:
    x = torch.tensor([[math.nan, math.inf, -math.inf, 2.0]])
    got = sampler_step(x, torch.zeros_like(x), torch.tensor([1.0, 1, 1, 0, 0, 0]), clip=clip)[1]
    expected = x if clip is None else x.clamp(-1, 1)
    assert torch.equal(got.isnan(), expected.isnan())
    assert torch.equal(got.nan_to_num(9, 9, -9), expected.nan_to_num(9, 9, -9))


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"x": 3}, TypeError, "x must be a torch.Tensor, got int"),
        ({"x": torch.tensor(1.0)}, ValueError, r"x must be \[N, ...\], got a scalar"),
        ({"x": X.int()}, TypeError, "x must be float32, .* got torch.int32"),
        ({"m": X[:1]}, ValueError, r"m must have x's shape \(2, 3, 4, 5\), got \(1, 3, 4, 5\)"),
        ({"m": X.double()}, TypeError, "m must have x's dtype torch.float32, got torch.float64"),
        ({"previous": X[:, :1]}, ValueError, "previous must have x's shape"),
        ({"coefficients": C[:5]}, ValueError, r"coefficients must have shape \(6,\) or \(2, 6\), got \(5,\)"),
        ({"coefficients": C.double()}, TypeError, "coefficients must be float32, got torch.float64"),
        ({"clip": -1.0}, ValueError, "clip must be above 0 or None, got -1.0"),
        ({"seeds": SEEDS[:1]}, ValueError, r"seeds must have one value per image, shape \(2,\), got \(1,\)"),
        ({"seeds": SEEDS.int()}, TypeError, "seeds must be int64"),
        ({"seeds": SEEDS, "step": -1}, ValueError, r"step must be in 0..2\^32-1, got -1"),
        ({"seeds": SEEDS, "step": torch.zeros(2)}, TypeError, "step must be an int64 tensor of one element"),
        ({"seeds": SEEDS, "purpose": -1}, ValueError, "purpose must be in"),
    ],
)
def test_wrong_arguments_are_named(kwargs: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        sampler_step(**({"x": X, "m": X, "coefficients": C} | kwargs))


@native
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({0: X.int()}, "x must be"),
        ({0: torch.tensor(1.0)}, "x must be"),
        ({1: X[:1]}, "m must have the images' shape and dtype"),
        ({1: X.half()}, "m must have the images' shape and dtype"),
        ({2: X[..., :1]}, "previous must have the images' shape and dtype"),
        ({3: C[:5]}, "coefficients must be"),
        ({3: C.repeat(3, 1)}, "coefficients must be"),
        ({3: C.double()}, "coefficients must be"),
        ({5: SEEDS[:1]}, "seeds must be"),
        ({5: SEEDS.int()}, "seeds must be"),
        ({6: None}, "step must be given"),
        ({6: torch.zeros(2, dtype=torch.int64)}, "step must be"),
        ({6: torch.tensor(1.0)}, "step must be"),
    ],
)
def test_the_kernel_checks_memory_safety_again(changed: dict, message: str) -> None:
    args = [X, X, None, C, 1.0, SEEDS, torch.tensor(0), 2]
    for i, value in changed.items():
        args[i] = value
    with pytest.raises(RuntimeError, match=message):
        torch.ops.fastdiff.sampler_step.default(*args)
