import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from fastdiff.diffusion import SAMPLERS, NoiseScheduler, run_sampler, sample, spaced_timesteps
from fastdiff.diffusion.samplers import SPACINGS, ddim, ddpm

ALL = list(range(999, -1, -1))


@given(st.integers(1, 1200), st.data(), st.sampled_from(SPACINGS))
@settings(max_examples=200, deadline=None)
def test_spacings_are_distinct_and_fall(count, data, spacing):
    steps = data.draw(st.integers(1, count))
    t = spaced_timesteps(count, steps, spacing)
    assert len(t) == steps
    assert all(a > b for a, b in pairwise(t))
    assert 0 <= t[-1] <= t[0] < count
    if spacing != "leading":
        assert t[0] == count - 1
    if spacing == "leading" or (spacing == "linspace" and steps > 1):
        assert t[-1] == 0
    assert spaced_timesteps(count, count, spacing) == list(range(count - 1, -1, -1))


def test_spacings_are_the_published_ones():
    assert spaced_timesteps(1000, 10, "leading") == list(range(900, -1, -100))
    assert spaced_timesteps(1000, 10, "linspace") == [999, 888, 777, 666, 555, 444, 333, 222, 111, 0]
    assert spaced_timesteps(1000, 10, "trailing") == list(range(999, 0, -100))
    for steps, message in [(0, r"steps must be in 1\.\.10"), (11, "got 11")]:
        with pytest.raises(ValueError, match=message):
            spaced_timesteps(10, steps)
    with pytest.raises(ValueError, match="leading, linspace, trailing, got 'even'"):
        spaced_timesteps(10, 5, "even")


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_all_steps_of_ddpm_are_the_exact_posterior(variance):
    s = NoiseScheduler()
    timesteps, rows = ddpm(s, ALL, "eps", variance)
    assert timesteps == ALL
    assert rows.dtype is torch.float64
    betas = np.linspace(1e-4, 0.02, 1000)
    abar = np.cumprod(1 - betas)
    before = np.append(1, abar[:-1])
    small = betas * (1 - before) / (1 - abar)
    sigma = np.sqrt(small if variance == "fixed_small" else np.append(0, betas[1:]))
    expected = np.stack(
        [
            1 / np.sqrt(abar),
            -np.sqrt(1 / abar - 1),
            np.sqrt(before) * betas / (1 - abar),
            np.sqrt(1 - betas) * (1 - before) / (1 - abar),
            sigma,
            0 * abar,
        ],
        axis=1,
    )[::-1]
    np.testing.assert_allclose(rows, expected, rtol=1e-8, atol=1e-12)

    # Ho et al. 2020, equation 11: the mean in terms of eps.
    np.testing.assert_allclose(rows[:, 2] * rows[:, 0] + rows[:, 3], 1 / np.sqrt(1 - betas[::-1]), rtol=1e-9)
    of_eps = -betas / np.sqrt((1 - betas) * (1 - abar))
    np.testing.assert_allclose(rows[:, 2] * rows[:, 1], of_eps[::-1], rtol=1e-8)

    assert_close(s.ddpm_table("eps", variance), rows.flip(0)[:, :5].float(), rtol=0, atol=0)


def test_ddim_with_eta_1_is_ddpm_for_any_timesteps():
    s = NoiseScheduler()
    t = spaced_timesteps(1000, 37)
    assert_close(ddim(s, t, "v", eta=1.0)[1], ddpm(s, t, "v")[1], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("eta", [0.0, 0.4])
@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
def test_ddim_steps_as_written_in_the_paper(prediction, eta):
    s = NoiseScheduler()
    abar = np.append(1, np.cumprod(1 - np.linspace(1e-4, 0.02, 1000)))  # abar[t + 1], and 1 for the image
    t = [999, 600, 599, 20, 3]
    _, rows = ddim(s, t, prediction, eta)
    rng = np.random.default_rng(0)
    x, m, noise = rng.normal(size=(3, 16))
    for now, after, row in zip(t, [*t[1:], -1], rows.numpy(), strict=True):
        a, b = abar[now + 1], abar[after + 1]
        x0 = {
            "eps": (x - np.sqrt(1 - a) * m) / np.sqrt(a),
            "x0": m,
            "v": np.sqrt(a) * x - np.sqrt(1 - a) * m,
        }[prediction]
        eps = (x - np.sqrt(a) * x0) / np.sqrt(1 - a)
        sigma = eta * np.sqrt((1 - b) / (1 - a)) * np.sqrt(1 - a / b)
        expected = np.sqrt(b) * x0 + np.sqrt(1 - b - sigma**2) * eps + sigma * noise
        np.testing.assert_allclose(row[0] * x + row[1] * m, x0, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(row[2] * x0 + row[3] * x + row[4] * noise, expected, rtol=1e-8, atol=1e-8)


def moments(denoise, timesteps, rows):
    """Mean and variance that a table makes of N(0, 1), each step being linear in x: no sampling error."""
    mean, variance = 0.0, 1.0
    for t, (k0, k1, k2, k3, k4, _) in zip(timesteps, rows.tolist(), strict=True):
        p, q = denoise.lines(t)
        slope = k2 * (k0 + k1 * q) + k3
        mean, variance = k2 * k1 * p + slope * mean, slope**2 * variance + k4**2
    return mean, variance


@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
@pytest.mark.parametrize(
    ("sampler", "options"),
    [("ddpm", {}), ("ddpm", {"variance": "fixed_large"}), ("ddim", {}), ("ddim", {"eta": 0.5})],
)
def test_gaussian_data_is_reproduced(gaussian, sampler, options, prediction):
    s = NoiseScheduler()
    denoise = gaussian(s, mean=0.3, std=0.5, prediction=prediction)
    mean, variance = moments(denoise, *SAMPLERS[sampler](s, ALL, prediction, **options))
    assert mean == pytest.approx(0.3, abs=5e-3)
    assert variance == pytest.approx(0.25, rel=0.02)


@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
def test_the_loop_does_what_the_table_says(gaussian, sampler):
    s = NoiseScheduler()
    denoise = gaussian(s)
    images = sample(denoise, s, (64, 1, 16, 16), sampler=sampler, steps=50, clip=None, seed=0).double()
    mean, variance = moments(denoise, *SAMPLERS[sampler](s, spaced_timesteps(1000, 50)))
    n = images.numel()
    assert images.mean().item() == pytest.approx(mean, abs=5 * math.sqrt(variance / n))
    assert images.var().item() == pytest.approx(variance, rel=5 * math.sqrt(2 / n))


def test_ddim_converges_at_first_order(gaussian):
    s = NoiseScheduler(4096, rescale_betas=True)
    denoise = gaussian(s, mean=0.3, std=0.5)
    abar = s.exact["alphas_cumprod"][-1]
    # The probability flow keeps x's place in its Gaussian: Song et al. 2021, "Score-Based Generative Modeling".
    start = torch.linspace(-2, 2, 9, dtype=torch.float64)
    exact = 0.3 + 0.5 * (start - abar.sqrt() * 0.3) / (abar * 0.25 + 1 - abar).sqrt()
    errors = []
    for steps in (64, 128, 256, 512):
        x = start
        for t, row in zip(*ddim(s, spaced_timesteps(4096, steps, "trailing")), strict=True):
            p, q = denoise.lines(t)
            x = row[2] * (row[0] * x + row[1] * (p + q * x)) + row[3] * x
        errors.append((x - exact).abs().max().item())
    orders = [math.log2(a / b) for a, b in pairwise(errors)]
    assert orders == pytest.approx([1, 1, 1], abs=0.2), errors


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_any_number_of_steps(gaussian, sampler, spacing):
    for kind in ("linear", "cosine"):
        s = NoiseScheduler(12, schedule_type=kind)
        for steps in range(1, 13):
            x = sample(gaussian(s), s, (2, 1, 2, 2), sampler=sampler, steps=steps, spacing=spacing, seed=1)
            assert torch.isfinite(x).all()
            assert x.abs().max() <= 1


@pytest.mark.parametrize("prediction", ["x0", "v"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_zero_terminal_snr(gaussian, sampler, prediction):
    s = NoiseScheduler(zero_terminal_snr=True)
    denoise = gaussian(s, prediction=prediction)
    mean, variance = moments(denoise, *SAMPLERS[sampler](s, ALL, prediction))
    assert mean == pytest.approx(0.3, abs=1e-3)
    assert variance == pytest.approx(0.25, rel=0.02)
    x = sample(denoise, s, (2, 1, 4, 4), sampler=sampler, steps=5, spacing="trailing", prediction=prediction, seed=0)
    assert torch.isfinite(x).all()
    with pytest.raises(ValueError, match="zero signal"):
        SAMPLERS[sampler](s, ALL, "eps")


def test_samplers_check_their_arguments():
    s = NoiseScheduler(10)
    with pytest.raises(ValueError, match="fixed_small, fixed_large, got 'learned'"):
        ddpm(s, [3], variance="learned")
    with pytest.raises(ValueError, match=r"eta must be in 0\.\.1, got 2"):
        ddim(s, [3], eta=2)
    for wrong in ([], [10], [3, 3], [2, 5], [1, -1]):
        with pytest.raises(ValueError, match="timesteps must fall strictly"):
            ddim(s, wrong)


def test_a_multistep_table_gets_the_last_x0():
    """k5 reaches the previous step's x0; in the first step there is none."""
    rows = torch.tensor([[0, 1, 1, 0, 0, 0], [0, 1, 0, 0, 0, 1.0]], dtype=torch.float64)
    x, _ = run_sampler(lambda x, t: torch.full_like(x, float(t[0])), torch.zeros(1, 1), [7, 3], rows, clip=None)
    assert x.item() == 7
