import math

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from fastdiff.diffusion import SAMPLERS, NoiseScheduler, sample, spaced_timesteps
from fastdiff.diffusion.levels import SPACINGS
from fastdiff.diffusion.multistep import dpmpp_2m, dpmpp_2m_sde, unipc
from fastdiff.diffusion.samplers import ddim, ddpm, euler, euler_ancestral, heun, sampler_options, sampler_steps

ALL = list(range(999, -1, -1))


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_all_steps_of_ddpm_are_the_exact_posterior(variance):
    s = NoiseScheduler()
    timesteps, rows, _ = ddpm(s, ALL, "eps", variance)
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
    assert_close(ddim(s, t, "v", eta=1.0).rows, ddpm(s, t, "v").rows, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("eta", [0.0, 0.4])
@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
def test_ddim_steps_as_written_in_the_paper(prediction, eta):
    s = NoiseScheduler()
    abar = np.append(1, np.cumprod(1 - np.linspace(1e-4, 0.02, 1000)))  # abar[t + 1], and 1 for the image
    t = [999, 600, 599, 20, 3]
    rows = ddim(s, t, prediction, eta).rows
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


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_any_number_of_steps(gaussian, sampler, spacing):
    for prediction, options in [
        ("eps", {}),
        ("eps", {"schedule_type": "cosine"}),
        ("v", {"zero_terminal_snr": True}),
        ("edm", {"zero_terminal_snr": True, "rescale_betas": True}),
    ]:
        s = NoiseScheduler(12, **options)
        for steps in (1, 2, 3, 11, 12):
            given = {"sampler": sampler, "steps": steps, "spacing": spacing, "prediction": prediction}
            x = sample(gaussian(s, prediction=prediction), s, (2, 1, 2, 2), seed=1, **given)
            assert torch.isfinite(x).all()
            assert x.abs().max() <= 1


def walk(steps, x0_of, x, noises):
    """A table's rows in float64, where x0_of(x, t) is the network; noises: one per row."""
    last, before = 0 * x, 0 * x
    for t, (k0, k1, k2, k3, k4, k5, k6), noise in zip(steps.timesteps, steps.rows.tolist(), noises, strict=True):
        assert (k0, k1) == (0, 1)
        x0 = x0_of(x, t)
        x = k2 * x0 + k3 * x + k4 * noise + k5 * last + k6 * before
        last, before = x0, last
    return x


def sigma_at(s, t):
    """Noise over signal, with its logarithm linear between whole timesteps."""
    abar = s.exact["alphas_cumprod"].numpy()
    return np.exp(np.interp(t, np.arange(len(abar)), np.log(np.sqrt(1 / abar - 1))))


def edm_view(s, x0_of):
    """D(x_EDM, sigma) of Karras et al. 2022 for a network in x = sqrt(abar) x_EDM told t."""
    log_sigmas = np.log(np.sqrt(1 / s.exact["alphas_cumprod"].numpy() - 1))

    def denoised(x, sigma):
        return x0_of(x / np.sqrt(1 + sigma**2), np.interp(np.log(sigma), log_sigmas, np.arange(len(log_sigmas))))

    return denoised


def x0_of(x, t):
    return 0.8 * np.sin(2 * x + t / 300)


T_VISITED = [990, 801, 640, 523, 320, 180, 90, 31, 5]
START = np.random.default_rng(0).normal(size=16)
NOISES = np.random.default_rng(1).normal(size=(2 * len(T_VISITED), 16))


@pytest.mark.parametrize("second_order", [False, True])
@pytest.mark.parametrize("churn", [0.0, 3.0])
def test_euler_and_heun_as_algorithm_2(second_order, churn):
    """Karras et al. 2022, algorithm 2, in x_EDM; the noise of a step is that of the row that leads to it."""
    s = NoiseScheduler()
    sigma = [*sigma_at(s, T_VISITED), 0.0]
    denoised, low, high, s_noise = edm_view(s, x0_of), 0.05, 20.0, 1.007
    n, row, x = len(T_VISITED), 0, None
    for i in range(n):
        gamma = min(churn / n, np.sqrt(2) - 1) if low <= sigma[i] <= high else 0
        hot = sigma[i] * (1 + gamma)
        x = x + np.sqrt(hot**2 - sigma[i] ** 2) * s_noise * NOISES[row - 1] if i else START * np.sqrt(1 + hot**2)
        d = (x - denoised(x, hot)) / hot
        after = x + (sigma[i + 1] - hot) * d
        row += 1
        if second_order and sigma[i + 1]:
            d2 = (after - denoised(after, sigma[i + 1])) / sigma[i + 1]
            after = x + (sigma[i + 1] - hot) * (d + d2) / 2
            row += 1
        x = after
    sampler = heun if second_order else euler
    steps = sampler(s, T_VISITED, "x0", churn=churn, churn_min=low, churn_max=high, churn_noise=s_noise)
    assert len(steps.timesteps) == (2 * n - 1 if second_order else n)
    got = walk(steps, x0_of, START, NOISES[: len(steps.timesteps)])
    np.testing.assert_allclose(got, x, rtol=0, atol=1e-9)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_euler_ancestral_in_sigma(eta):
    s = NoiseScheduler()
    sigma = [*sigma_at(s, T_VISITED), 0.0]
    denoised, x = edm_view(s, x0_of), START * np.sqrt(1 + sigma[0] ** 2)
    for i in range(len(T_VISITED)):
        now, after = sigma[i], sigma[i + 1]
        up = min(after, eta * np.sqrt(after**2 * (now**2 - after**2) / now**2))
        down = np.sqrt(after**2 - up**2)
        x = x + (down - now) * (x - denoised(x, now)) / now + up * NOISES[i]
    got = walk(euler_ancestral(s, T_VISITED, "x0", eta), x0_of, START, NOISES[: len(T_VISITED)])
    np.testing.assert_allclose(got, x, rtol=0, atol=1e-9)


def lambdas(s):
    """alpha, sigma and lambda of Lu et al. 2022 at the visited timesteps."""
    abar = s.exact["alphas_cumprod"].numpy()[T_VISITED]
    return np.sqrt(abar), np.sqrt(1 - abar), np.log(np.sqrt(abar / (1 - abar)))


@pytest.mark.parametrize("sde", [False, True])
def test_dpm_solver_as_written_in_the_paper(sde):
    """Lu et al. 2022, "DPM-Solver++", algorithm 2 and its SDE form; the last step, to lambda = infinity, gives x0."""
    s = NoiseScheduler()
    alpha, sigma, lam = lambdas(s)
    x, models = START, []
    for i, t in enumerate(T_VISITED[:-1]):
        models.append(x0_of(x, t))
        h = lam[i + 1] - lam[i]
        d = models[-1]
        if i:
            r = (lam[i] - lam[i - 1]) / h
            d = (1 + 1 / (2 * r)) * models[-1] - 1 / (2 * r) * models[-2]
        if sde:
            x = sigma[i + 1] / sigma[i] * np.exp(-h) * x + alpha[i + 1] * (1 - np.exp(-2 * h)) * d
            x = x + sigma[i + 1] * np.sqrt(1 - np.exp(-2 * h)) * NOISES[i]
        else:
            x = sigma[i + 1] / sigma[i] * x - alpha[i + 1] * (np.exp(-h) - 1) * d
    x = x0_of(x, T_VISITED[-1])
    sampler = dpmpp_2m_sde if sde else dpmpp_2m
    got = walk(sampler(s, T_VISITED, "x0"), x0_of, START, NOISES[: len(T_VISITED)])
    np.testing.assert_allclose(got, x, rtol=0, atol=1e-9)


def test_unipc_as_written_in_the_paper():
    """Zhao et al. 2023, algorithms 1 and 2 with p = 2, for x0: predict, evaluate, correct the step from where it began."""
    s = NoiseScheduler()
    alpha, sigma, lam = lambdas(s)

    def step(x, i, models, order, new=None):
        """From level i - 1 to i; models: those up to i - 1; new: that at i, for the corrector."""
        h = lam[i] - lam[i - 1]
        scale, b = sigma[i] / sigma[i - 1] * x - alpha[i] * np.expm1(-h) * models[-1], np.expm1(-h)
        r = [(lam[i - 1 - j] - lam[i - 1]) / h for j in range(1, order)]
        d = [(models[-1 - j] - models[-1]) / r[j - 1] for j in range(1, order)]
        if new is not None:
            r, d = [*r, 1.0], [*d, new - models[-1]]
        if not d:
            return scale
        phi, right, factorial = np.expm1(-h) / -h - 1, [], 1
        for j in range(1, len(d) + 1):
            right.append(phi * factorial / b)
            factorial *= j + 1
            phi = phi / -h - 1 / factorial
        # One unknown: a weight of 1/2 whatever B(h) is, as the paper has it.
        weights = [0.5] if len(d) == 1 else np.linalg.solve([np.power(r, j) for j in range(len(r))], right)
        return scale - alpha[i] * b * sum(w * each for w, each in zip(weights, d, strict=True))

    x, models = START, [x0_of(START, T_VISITED[0])]
    for i in range(1, len(T_VISITED)):
        order = min(2, i)
        predicted = step(x, i, models, order)
        new = x0_of(predicted, T_VISITED[i])
        x = step(x, i, models, order, new)
        models.append(new)
    got = walk(unipc(s, T_VISITED, "x0"), x0_of, START, NOISES[: len(T_VISITED)])
    np.testing.assert_allclose(got, models[-1], rtol=0, atol=1e-9)


PUBLISHED = {  # of diffusers 0.42.1 in the manner of its tests, 10 trailing timesteps: sum of absolutes, mean, three pixels
    "ddpm": (232.360, -0.00609, (-0.2212, 0.1534, 0.1573)),
    "ddim": (170.035, 0.22140, (0.0, 0.0023, 0.0046)),
    "euler": (170.035, 0.22140, (0.0, 0.0023, 0.0046)),
    "euler_ancestral": (232.360, -0.00609, (-0.2212, 0.1534, 0.1573)),
    "heun": (190.336, 0.24783, (0.0, 0.0026, 0.0052)),
    "dpmpp_2m": (185.265, 0.24123, (0.0, 0.0025, 0.0050)),
    "dpmpp_2m_sde": (279.344, -0.00844, (-0.3422, 0.1837, 0.2093)),
    "unipc": (187.023, 0.24352, (0.0, 0.0025, 0.0051)),
}


def as_in_their_tests(name, timesteps, clip=math.inf):
    """A ramp for noise and x t / (t + 1) for the network; noise of torch's generator with seed 0."""
    x = (torch.arange(768) / 768).reshape(3, 8, 8, 4).permute(3, 0, 1, 2).double()
    generator, last, before = torch.Generator().manual_seed(0), 0 * x, 0 * x
    steps = SAMPLERS[name](NoiseScheduler(), timesteps)
    for t, (k0, k1, k2, k3, k4, k5, k6) in zip(steps.timesteps, steps.rows.tolist(), strict=True):
        x0 = (k0 * x + k1 * x * t / (t + 1)).clamp(-clip, clip)
        x = k2 * x0 + k3 * x + k5 * last + k6 * before
        if k4:
            x = x + k4 * torch.randn(x.shape, generator=generator)
        last, before = x0, last
    return x


@pytest.mark.parametrize("name", SAMPLERS)
def test_values_of_another_library(name):
    x = as_in_their_tests(name, spaced_timesteps(1000, 10, "trailing"))
    total, mean, pixels = PUBLISHED[name]
    assert x.abs().sum().item() == pytest.approx(total, abs=2e-3)
    assert x.mean().item() == pytest.approx(mean, abs=1e-5)
    assert x[0, 0, 0, :3].tolist() == pytest.approx(pixels, abs=1e-4)


def test_values_that_another_library_publishes():
    """The full loops in its tests of DDPM and DDIM, to the tolerance that it allows there."""
    for name, timesteps, total, mean in [
        ("ddpm", ALL, 258.9606, 0.3372),
        ("ddim", spaced_timesteps(1000, 10), 172.0067, 0.223967),
    ]:
        x = as_in_their_tests(name, timesteps, clip=1.0).abs()
        assert x.sum().item() == pytest.approx(total, abs=1e-2)
        assert x.mean().item() == pytest.approx(mean, abs=1e-3)


def test_samplers_that_are_one():
    s = NoiseScheduler()
    assert_close(euler(s, T_VISITED).rows, ddim(s, T_VISITED).rows, rtol=1e-9, atol=1e-12)
    assert_close(euler_ancestral(s, T_VISITED).rows, ddpm(s, T_VISITED).rows, rtol=1e-9, atol=1e-12)
    for sampler, first in [(dpmpp_2m, ddim), (unipc, ddim), (dpmpp_2m_sde, ddpm)]:
        assert_close(sampler(s, T_VISITED).rows[0], first(s, T_VISITED).rows[0], rtol=1e-9, atol=1e-12)


def test_ddim_and_its_kin_are_deterministic():
    """No row of theirs has noise; and the churn adds it only where it is asked for."""
    s = NoiseScheduler()
    for name in SAMPLERS:
        noisy = (SAMPLERS[name](s, T_VISITED).rows[:, 4] != 0).any()
        assert noisy == (name in ("ddpm", "euler_ancestral", "dpmpp_2m_sde")), name
    rows = heun(s, T_VISITED, churn=2.0, churn_min=1.0, churn_max=2.0).rows
    sigma = sigma_at(s, T_VISITED)
    assert (rows[:, 4] != 0).sum() == ((sigma >= 1) & (sigma <= 2)).sum() > 0


def test_samplers_check_their_arguments():
    s = NoiseScheduler(10)
    with pytest.raises(ValueError, match="fixed_small, fixed_large, got 'learned'"):
        ddpm(s, [3], variance="learned")
    for sampler in (ddim, euler_ancestral):
        with pytest.raises(ValueError, match=r"eta must be in 0\.\.1, got 2"):
            sampler(s, [3], eta=2)
    for options, message in [
        ({"churn": -1}, "churn must be at least 0 and finite, got -1"),
        ({"churn": math.nan}, "churn must be"),
        ({"churn_min": 3, "churn_max": 2}, "0 <= min <= max, got 3 and 2"),
        ({"churn_noise": 0}, "churn_noise must be above 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            heun(s, [3], **options)
    for wrong in ([], [10], [3, 3], [2, 5], [1, -1], [math.nan], [9.5, 1]):
        for name in SAMPLERS:
            with pytest.raises(ValueError, match="timesteps must fall strictly"):
                SAMPLERS[name](s, wrong)
    with pytest.raises(ValueError, match="less noise than the one before"):
        ddim(NoiseScheduler(10, zero_terminal_snr=True), [9, 8.5], "v")  # both pure noise
    with pytest.raises(ValueError, match="ddpm, ddim, euler, euler_ancestral, heun, dpmpp_2m, dpmpp_2m_sde, unipc, got 'plms'"):
        sampler_steps("plms", s, [3])
    with pytest.raises(TypeError, match="'eta' is no option of sampler 'ddpm', which has variance"):
        sampler_steps("ddpm", s, [3], eta=0.5)
    with pytest.raises(TypeError, match="which has none"):
        sampler_steps("unipc", s, [3], eta=0.5)


def test_options_are_those_of_the_functions():
    assert sampler_options("ddim") == {"eta": 0.0}
    assert sampler_options("heun") == {"churn": 0.0, "churn_min": 0.0, "churn_max": math.inf, "churn_noise": 1.0}
