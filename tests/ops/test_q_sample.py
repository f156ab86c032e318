"""q_sample: the noise itself, timesteps out of range, errors, the kernel's own checks."""

from __future__ import annotations

import pytest
import torch
from noisy import CPU_LEVELS, SHAPES, cpu_level, layouts
from oracle import needs_kernel

from fastdiff import ops
from fastdiff.ops import philox_normal, q_sample

X = torch.randn(3, 3, 4, 5)
ABAR = torch.linspace(0.99, 0.01, 10)
SIGNAL, SIGMA = ABAR.sqrt(), (1 - ABAR).sqrt()
SEEDS = torch.tensor([7, 1, 2**62 + 5])
T = torch.tensor([0, 9, 4])
RAW = torch.ops.fastdiff.q_sample.default

native = needs_kernel("q_sample")


@native
@pytest.mark.parametrize("level", CPU_LEVELS)
def test_the_noise_is_that_of_philox_normal(level: str) -> None:
    one = torch.ones(1)
    for shape in SHAPES:
        seeds = ops.image_seeds(5, shape[0])
        noise = philox_normal(shape, seeds, 17, 3)
        for zeros in layouts(torch.zeros(shape)):
            with cpu_level(level):
                xt, returned = q_sample(zeros, torch.tensor([0]), one, one, seeds=seeds, step=17)
            assert torch.equal(xt, noise), shape
            assert torch.equal(returned, noise), shape
            assert returned.stride() == xt.stride()


def test_it_is_the_formula_and_a_given_noise_comes_back() -> None:
    noise = torch.randn_like(X)
    a, b = (v[T].reshape(3, 1, 1, 1) for v in (SIGNAL, SIGMA))
    for x, given in zip(layouts(X), layouts(noise)[::-1], strict=True):
        for t in (T, T.int(), torch.stack((T, T), 1)[:, 0]):
            xt, returned = q_sample(x, t, SIGNAL, SIGMA, given)
            assert returned is given
            torch.testing.assert_close(xt, a * X + b * noise)
    made = q_sample(X, T, SIGNAL, SIGMA, seeds=SEEDS)
    torch.testing.assert_close(made[0], a * X + b * made[1])
    both = torch.stack((SIGNAL, SIGMA), 1)  # strided tables
    assert torch.equal(q_sample(X, T, both[:, 0], both[:, 1], seeds=SEEDS)[0], made[0])
    same = q_sample(X, T[2:], SIGNAL, SIGMA, seeds=SEEDS)[0]
    assert torch.equal(q_sample(X, T[2:].expand(3), SIGNAL, SIGMA, seeds=SEEDS)[0], same)  # stride 0


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("wrong", [-1, 10, 2**62])
def test_a_timestep_out_of_range_gives_nan_for_that_image_alone(wrong: int, given: bool) -> None:
    args = (SIGNAL, SIGMA, *((X, None, None) if given else (None, SEEDS, torch.tensor(3))), 3)
    t = T.clone()
    t[1] = wrong
    good, got = RAW(X, T, *args), RAW(X, t, *args)
    assert got[0][1].isnan().all()
    assert torch.equal(got[0][::2], good[0][::2])
    assert torch.equal(got[1], good[1])


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"x0": "x"}, TypeError, "x0 must be a torch.Tensor, got str"),
        ({"x0": torch.tensor(1.0)}, ValueError, r"x0 must be \[N, ...\], got a scalar"),
        ({"x0": X.long()}, TypeError, "x0 must be float32, .* got torch.int64"),
        ({"t": torch.full((3,), 10)}, ValueError, r"t must be in 0..9, got 10"),
        ({"t": torch.full((100,), 0)}, ValueError, r"t must have shape \(3,\) or \(1,\), got \(100,\)"),
        ({"t": T.half()}, TypeError, "t must be int64 or int32, got torch.float16"),
        ({"signal": SIGNAL.double()}, TypeError, "signal must be float32, got torch.float64"),
        ({"sigma": SIGMA[:9]}, ValueError, r"signal and sigma must have one shape \[T\], got \(10,\) and \(9,\)"),
        ({"noise": X[:1]}, ValueError, "noise must have x's shape"),
        ({"seeds": None}, ValueError, "noise or seeds must be given"),
        ({"seeds": SEEDS[:2]}, ValueError, "seeds must have one value per image"),
    ],
)
def test_wrong_arguments_are_named(kwargs: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        q_sample(**({"x0": X, "t": T, "signal": SIGNAL, "sigma": SIGMA, "seeds": SEEDS} | kwargs))


@pytest.mark.parametrize(("count", "wrong"), [(64, -2), (65, 12), (1000, -2)])
def test_timesteps_of_few_and_of_many_images_are_checked(count: int, wrong: int) -> None:
    t = torch.zeros(count, dtype=torch.int32)
    t[count // 2] = wrong
    with pytest.raises(ValueError, match=f"t must be in 0..9, got {wrong}"):
        q_sample(torch.zeros(count, 1), t, SIGNAL, SIGMA, seeds=torch.arange(count))


@native
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({0: X.int()}, "x0 must be"),
        ({1: T[:2]}, "t must be"),
        ({1: T.float()}, "t must be"),
        ({2: SIGNAL[None]}, "signal must be"),
        ({2: SIGNAL.double()}, "signal must be"),
        ({3: SIGMA[:5]}, "sigma must be"),
        ({4: X[:1]}, "noise must have the images' shape and dtype"),
        ({5: None}, "noise, or seeds and step, must be given"),
        ({6: None}, "noise, or seeds and step, must be given"),
        ({5: SEEDS[:2]}, "seeds must be"),
        ({6: torch.tensor(1.0)}, "step must be"),
    ],
)
def test_the_kernel_checks_memory_safety_again(changed: dict, message: str) -> None:
    args = [X, T, SIGNAL, SIGMA, None, SEEDS, torch.tensor(0), 3]
    for i, value in changed.items():
        args[i] = value
    with pytest.raises(RuntimeError, match=message):
        RAW(*args)
