"""Samplers against answers in closed form: for Gaussian and Gaussian-mixture data the best denoiser and the flow are known."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from fastdiff import ops
from fastdiff.diffusion import NoiseScheduler, karras_timesteps, run_sampler, sample
from fastdiff.diffusion.levels import abar_at, spaced_timesteps
from fastdiff.diffusion.samplers import SAMPLERS

ALL = list(range(999, -1, -1))
VARIANTS = [
    *((name, {}) for name in SAMPLERS),
    ("ddpm", {"variance": "fixed_large"}),
    ("ddim", {"eta": 0.5}),
    ("heun", {"churn": 100, "churn_max": 50.0}),
    ("euler", {"churn": 5}),
]


def moments(denoise, steps):
    """Mean and variance that a table makes of N(0, 1): rows are linear in (x, last x0, the one before), so without error."""
    mean, covariance = np.zeros(3), np.diag([1.0, 0, 0])
    for t, (k0, k1, k2, k3, k4, k5, k6) in zip(steps.timesteps, steps.rows.tolist(), strict=True):
        p, q = denoise.lines(t)
        slope = k0 + k1 * q
        matrix = np.array([[k2 * slope + k3, k5, k6], [slope, 0, 0], [0, 1, 0]])
        mean = matrix @ mean + [k2 * k1 * p, k1 * p, 0]
        covariance = matrix @ covariance @ matrix.T
        covariance[0, 0] += k4**2
    return mean[0], covariance[0, 0]


@pytest.mark.parametrize("prediction", ["eps", "x0", "v", "edm"])
@pytest.mark.parametrize(("sampler", "options"), VARIANTS)
def test_gaussian_data_is_reproduced(gaussian, sampler, options, prediction):
    s = NoiseScheduler()
    denoise = gaussian(s, mean=0.3, std=0.5, prediction=prediction)
    mean, variance = moments(denoise, SAMPLERS[sampler](s, ALL, prediction, **options))
    assert mean == pytest.approx(0.3, abs=5e-3)
    assert variance == pytest.approx(0.25, rel=0.02)


@pytest.mark.parametrize("sampler", ["heun", "dpmpp_2m", "unipc"])
def test_higher_orders_need_fewer_steps(gaussian, sampler):
    """A variance within 2 % where DDIM, of first order, is more than 10 % off."""
    s = NoiseScheduler()
    denoise = gaussian(s)

    def error(name):
        return abs(moments(denoise, SAMPLERS[name](s, karras_timesteps(s, 40)))[1] / 0.25 - 1)

    assert error(sampler) < 0.02
    assert error("ddim") > 0.1


@pytest.mark.parametrize("prediction", ["x0", "v", "edm"])
@pytest.mark.parametrize(("sampler", "options"), VARIANTS)
def test_zero_terminal_snr(gaussian, sampler, options, prediction):
    s = NoiseScheduler(zero_terminal_snr=True)
    denoise = gaussian(s, prediction=prediction)
    mean, variance = moments(denoise, SAMPLERS[sampler](s, ALL, prediction, **options))
    assert mean == pytest.approx(0.3, abs=1e-3)
    assert variance == pytest.approx(0.25, rel=0.02)
    x = sample(denoise, s, (2, 1, 4, 4), sampler=sampler, steps=5, spacing="trailing", prediction=prediction, seed=0, **options)
    assert torch.isfinite(x).all()
    with pytest.raises(ValueError, match="zero signal"):
        SAMPLERS[sampler](s, ALL, "eps")


@pytest.mark.parametrize("spacing", ["trailing", "karras"])
@pytest.mark.parametrize("prediction", ["eps", "edm"])
@pytest.mark.parametrize(("sampler", "options"), VARIANTS)
def test_the_loop_does_what_the_table_says(gaussian, sampler, options, prediction, spacing):
    s = NoiseScheduler()
    denoise = gaussian(s, prediction=prediction)
    t = karras_timesteps(s, 20) if spacing == "karras" else spaced_timesteps(1000, 20, spacing)
    given = {"sampler": sampler, "timesteps": t, "prediction": prediction, **options}
    images = sample(denoise, s, (16, 1, 16, 16), clip=None, seed=0, **given).double()
    mean, variance = moments(denoise, SAMPLERS[sampler](s, t, prediction, **options))
    n = images.numel()
    assert images.mean().item() == pytest.approx(mean, abs=5 * math.sqrt(variance / n))
    assert images.var().item() == pytest.approx(variance, rel=5 * math.sqrt(2 / n))


class Mixture:
    """Two Gaussians in the plane: points [N, 2] with their exact denoiser, which predicts v."""

    share = torch.tensor([0.3, 0.7], dtype=torch.float64)
    means = torch.tensor([[-0.6, 0.4], [0.5, -0.2]], dtype=torch.float64)
    covariances = torch.tensor([[[0.05, 0.03], [0.03, 0.04]], [[0.02, -0.01], [-0.01, 0.06]]], dtype=torch.float64)

    def __init__(self, scheduler):
        self.scheduler = scheduler

    @property
    def mean(self):
        return self.share @ self.means

    @property
    def covariance(self):
        apart = self.means - self.mean
        return torch.einsum("k,kij->ij", self.share, self.covariances + apart[:, :, None] * apart[:, None])

    def __call__(self, x, t):
        abar = abar_at(self.scheduler, [float(t[0])])
        a, b = abar.sqrt(), (1 - abar).sqrt()
        noisy = abar * self.covariances + (1 - abar) * torch.eye(2)
        apart = x[:, None] - a * self.means  # [N, 2 Gaussians, 2]
        solved = torch.einsum("kij,nkj->nki", torch.linalg.inv(noisy), apart)
        log_density = -0.5 * (apart * solved).sum(-1) - 0.5 * torch.logdet(noisy)
        weight = (log_density + self.share.log()).softmax(-1)
        x0 = self.means + a * torch.einsum("kij,nkj->nki", self.covariances, solved)
        x0 = (weight[..., None] * x0).sum(1)
        return ((a * x - x0) / b).to(x.dtype)


@pytest.mark.parametrize(("sampler", "options"), VARIANTS)
def test_a_mixture_is_reproduced(sampler, options):
    s = NoiseScheduler()
    truth, n, first_order = Mixture(s), 5_000, sampler in ("ddpm", "ddim", "euler", "euler_ancestral")
    t = karras_timesteps(s, 200 if first_order else 40)
    x = torch.randn(n, 2, generator=torch.Generator().manual_seed(0)).double()
    x, _ = run_sampler(truth, x, SAMPLERS[sampler](s, t, "v", **options), clip=None, seeds=ops.image_seeds(1, n))
    assert_close(x.mean(0), truth.mean, rtol=0, atol=0.03)
    assert_close(x.T.cov(), truth.covariance, rtol=0, atol=0.02)
    assert (x @ torch.tensor([1.0, -0.8]).double() < -0.1).double().mean().item() == pytest.approx(0.3, abs=0.025)


SPREADS, CENTRES, SHARES = (torch.tensor(v, dtype=torch.float64) for v in ([0.2, 0.3], [-0.5, 0.6], [0.4, 0.6]))


def one_mixture(x, sigma):
    """(x0, CDF) for a mixture on the line, at x_EDM under noise sigma."""
    spread = (SPREADS**2 + sigma**2).sqrt()
    z = (x[:, None] - CENTRES) / spread
    weight = (SHARES.log() - spread.log() - z**2 / 2).softmax(-1)
    x0 = CENTRES + (SPREADS / spread) ** 2 * (x[:, None] - CENTRES)
    return (weight * x0).sum(-1), (SHARES * torch.special.ndtr(z)).sum(-1)


def flow_end(start, sigma, last):
    """Where the probability flow takes points from noise `sigma` to `last`: on the line it keeps the cumulative probability."""
    wanted = one_mixture(start, sigma)[1]
    low, high = torch.full_like(start, -20), torch.full_like(start, 20)
    for _ in range(80):
        middle = (low + high) / 2
        below = one_mixture(middle, last)[1] < wanted
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return middle


@pytest.mark.parametrize(("sampler", "order"), [("ddim", 1), ("euler", 1), ("heun", 2), ("dpmpp_2m", 2), ("unipc", 3)])
def test_order_of_convergence(sampler, order):
    """Measured before the last step, which takes away what noise is left and is of first order in all of them."""
    s = NoiseScheduler()
    errors = []
    for count in (80, 160, 320):
        steps = SAMPLERS[sampler](s, karras_timesteps(s, count, 10.0), "x0")
        abar = abar_at(s, steps.timesteps)
        start = torch.linspace(-12, 12, 9, dtype=torch.float64)
        sigma = ((1 - abar) / abar).sqrt()
        x, past = start * abar[0].sqrt(), [torch.zeros_like(start)] * 2
        for k in range(len(steps.timesteps) - 1):
            x0 = one_mixture(x / abar[k].sqrt(), sigma[k])[0]
            row = steps.rows[k]
            x = row[2] * x0 + row[3] * x + row[5] * past[0] + row[6] * past[1]
            past = [x0, past[0]]
        got = x / abar[-1].sqrt()
        errors.append((got - flow_end(start, sigma[0], sigma[-1])).abs().max().item())
    orders = [math.log2(a / b) for a, b in pairwise(errors)]
    assert orders == pytest.approx([order] * 2, abs=0.25), errors
