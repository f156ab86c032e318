"""timestep_embedding: angles of every size and sign, dtypes, errors, the kernel's own checks."""

from __future__ import annotations

import math

import pytest
import torch
from noisy import CPU_LEVELS, cpu_level
from oracle import needs_kernel

from fastdiff import ops
from fastdiff.ops import timestep_embedding

OP = ops.REGISTRY["timestep_embedding"]
native = needs_kernel("timestep_embedding")


def exact(t: torch.Tensor, dim: int, max_period: float = 10000.0) -> torch.Tensor:
    rows = []
    for v in t.tolist():
        angles = [v * math.exp(-2 * math.log(max_period) * i / dim) for i in range(dim // 2)]
        rows.append([math.sin(a) for a in angles] + [math.cos(a) for a in angles])
    return torch.tensor(rows, dtype=torch.float64)


@native
@pytest.mark.parametrize("level", CPU_LEVELS)
def test_it_is_the_formula_on_every_instruction_set(level: str) -> None:
    t = torch.cat((torch.arange(1001.0), torch.linspace(-700, 700, 333), torch.logspace(-9, 7, 200))).double()
    with cpu_level(level):
        for dim in (2, 6, 34, 64):
            assert (timestep_embedding(t, dim).double() - exact(t, dim)).abs().max() < 2**-24


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.uint8, torch.float16, torch.float64])
def test_timesteps_of_any_number_type_and_stride(dtype: torch.dtype) -> None:
    t = torch.tensor([0, 3, 255]).to(dtype)
    expected = exact(t, 8).float()
    torch.testing.assert_close(timestep_embedding(t, 8), expected)
    torch.testing.assert_close(timestep_embedding(torch.stack((t, t), 1)[:, 0], 8), expected)
    torch.testing.assert_close(timestep_embedding(t[1:2].expand(3), 8), expected[1:2].expand(3, 8))


def test_the_first_frequency_is_1_and_the_last_nearly_1_over_max_period() -> None:
    e = timestep_embedding(torch.tensor([1.0]), 1000, 100.0)[0]
    assert e[0] == pytest.approx(math.sin(1))
    assert e[499] == pytest.approx(math.sin(100 ** -(499 / 500)))


def test_nan_and_infinity_give_nan_for_that_timestep_alone() -> None:
    e = timestep_embedding(torch.tensor([1.0, math.nan, math.inf, 2.0]), 6)
    assert e[1].isnan().all()
    assert e[2].isnan().all()
    assert not e[::3].isnan().any()


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"t": 5}, TypeError, "t must be a torch.Tensor, got int"),
        ({"t": torch.zeros(2, 2)}, ValueError, r"t must have shape \[N\], got \(2, 2\)"),
        ({"t": torch.zeros(2, dtype=torch.bool)}, TypeError, "t must be integer or floating, got torch.bool"),
        ({"dim": 3}, ValueError, "dim must be even and at least 2, got 3"),
        ({"dim": 0}, ValueError, "dim must be even and at least 2, got 0"),
        ({"max_period": 1.0}, ValueError, "max_period must be above 1, got 1.0"),
    ],
)
def test_wrong_arguments_are_named(kwargs: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        timestep_embedding(**({"t": torch.zeros(2), "dim": 4} | kwargs))


@native
def test_the_kernel_checks_memory_safety_again() -> None:
    with pytest.raises(RuntimeError, match="t must be"):
        OP.overload(torch.zeros(2, 2), 4, 100.0)
    for dim in (0, 3, -2):
        with pytest.raises(RuntimeError, match="dim must be"):
            OP.overload(torch.zeros(2), dim, 100.0)
