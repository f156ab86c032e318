"""ddpm_step: the noise itself, timesteps out of range, the last step, errors, the kernel's own checks."""

from __future__ import annotations

import pytest
import torch
from noisy import CPU_LEVELS, SHAPES, cpu_level, layouts
from oracle import needs_kernel

from fastdiff import ops
from fastdiff.ops import ddpm_step, philox_normal, sampler_step

X, M = torch.randn(3, 3, 4, 5), torch.randn(3, 3, 4, 5)
TABLE = torch.linspace(-0.9, 1.1, 50).reshape(10, 5)
SEEDS = torch.tensor([7, 1, 2**62 + 5])
T = torch.tensor([0, 9, 4])
RAW = torch.ops.fastdiff.ddpm_step.default

native = needs_kernel("ddpm_step")


@native
@pytest.mark.parametrize("level", CPU_LEVELS)
def test_the_noise_is_that_of_philox_normal(level: str) -> None:
    noise_alone = torch.tensor([[0.0, 0, 0, 0, 1]])
    for shape in SHAPES:
        seeds = ops.image_seeds(4, shape[0])
        noise = philox_normal(shape, seeds, 2**32 - 1, 5)
        for zeros in layouts(torch.zeros(shape)):
            with cpu_level(level):
                got = ddpm_step(zeros, zeros, torch.tensor([0]), noise_alone, seeds=seeds, step=2**32 - 1, purpose=5)
            assert torch.equal(got, noise), shape


def test_it_is_the_sampler_step_with_the_row_of_the_timestep() -> None:
    rows = torch.cat((TABLE[T], torch.zeros(3, 1)), 1)
    expected = sampler_step(X, M, rows, clip=1.0, seeds=SEEDS, step=3)[0]
    for t in (T, T.int(), torch.stack((T, T), 1)[:, 0]):
        torch.testing.assert_close(ddpm_step(X, M, t, TABLE, clip=1.0, seeds=SEEDS, step=3), expected)
    strided = torch.stack((TABLE, TABLE), 2)[:, :, 0]
    torch.testing.assert_close(ddpm_step(X, M, T, strided, clip=1.0, seeds=SEEDS, step=3), expected)
    same = ddpm_step(X, M, torch.tensor([4]), TABLE, seeds=SEEDS)
    assert torch.equal(ddpm_step(X, M, torch.tensor([4]).expand(3), TABLE, seeds=SEEDS), same)  # stride 0


def test_without_noise_seeds_do_not_matter() -> None:
    table = TABLE.clone()
    table[0, 4] = 0
    a, b = (ddpm_step(X, M, T, table, seeds=SEEDS + i) for i in range(2))
    assert torch.equal(a[0], b[0])
    assert not torch.equal(a[1], b[1])


@pytest.mark.parametrize("wrong", [-1, 10, 2**62, -(2**62)])
def test_a_timestep_out_of_range_gives_nan_for_that_image_alone(wrong: int) -> None:
    args = (TABLE, 1.0, SEEDS, torch.tensor(3), 2)
    t = T.clone()
    t[1] = wrong
    good, got = RAW(X, M, T, *args), RAW(X, M, t, *args)
    assert got[1].isnan().all()
    assert torch.equal(got[::2], good[::2])


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"x": None}, TypeError, "x must be a torch.Tensor, got NoneType"),
        ({"m": X[:1]}, ValueError, "m must have x's shape"),
        ({"t": torch.tensor([0, 10, 0])}, ValueError, r"t must be in 0..9, got 10"),
        ({"t": torch.tensor([-1])}, ValueError, r"t must be in 0..9, got -1"),
        ({"t": T.float()}, TypeError, "t must be int64 or int32, got torch.float32"),
        ({"t": T[:2]}, ValueError, r"t must have shape \(3,\) or \(1,\), got \(2,\)"),
        ({"table": TABLE[:, :4]}, ValueError, r"table must have shape \[T, 5\], got \(10, 4\)"),
        ({"table": TABLE.half()}, TypeError, "table must be float32, got torch.float16"),
        ({"clip": float("nan")}, ValueError, "clip must be above 0 or None, got nan"),
        ({"seeds": None}, TypeError, "seeds must be a torch.Tensor, got NoneType"),
        ({"step": 2**32}, ValueError, "step must be in"),
    ],
)
def test_wrong_arguments_are_named(kwargs: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ddpm_step(**({"x": X, "m": M, "t": T, "table": TABLE, "seeds": SEEDS} | kwargs))


@native
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({0: X.int()}, "x must be"),
        ({1: M[:, :1]}, "m must have the images' shape and dtype"),
        ({2: T[:2]}, "t must be"),
        ({2: T.float()}, "t must be"),
        ({2: T[:, None]}, "t must be"),
        ({3: TABLE[:, :4]}, "table must be"),
        ({3: TABLE.double()}, "table must be"),
        ({5: SEEDS[:2]}, "seeds must be"),
        ({6: torch.zeros(0, dtype=torch.int64)}, "step must be"),
    ],
)
def test_the_kernel_checks_memory_safety_again(changed: dict, message: str) -> None:
    args = [X, M, T, TABLE, 1.0, SEEDS, torch.tensor(0), 2]
    for i, value in changed.items():
        args[i] = value
    with pytest.raises(RuntimeError, match=message):
        RAW(*args)
