import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from fastdiff import ops
from fastdiff.diffusion import NoiseScheduler, add_noise, karras_sigmas
from fastdiff.diffusion.prediction import PREDICTIONS, input_scale, network_input, training_target, x0_coefficients

T = 1000


def numpy_betas(kind, n=T, start=1e-4, end=0.02):
    if kind == "linear":
        return np.linspace(start, end, n)
    if kind == "scaled_linear":
        return np.linspace(np.sqrt(start), np.sqrt(end), n) ** 2
    if kind == "sigmoid":
        return start + (end - start) / (1 + np.exp(-np.linspace(-6, 6, n)))
    f = [np.cos((k / n + 0.008) / 1.008 * np.pi / 2) ** 2 for k in range(n + 1)]
    return np.array([min(1 - f[k + 1] / f[k], 0.999) for k in range(n)])


@pytest.mark.parametrize("kind", ["linear", "cosine", "scaled_linear", "sigmoid"])
def test_tables_follow_the_formulas(kind):
    s = NoiseScheduler(schedule_type=kind)
    betas = numpy_betas(kind)
    abar = np.cumprod(1 - betas)
    before = np.append(1, abar[:-1])
    expected = {
        "betas": betas,
        "alphas": 1 - betas,
        "alphas_cumprod": abar,
        "alphas_cumprod_prev": before,
        "sqrt_alphas_cumprod": np.sqrt(abar),
        "sqrt_one_minus_alphas_cumprod": np.sqrt(1 - abar),
        "snr": abar / (1 - abar),
        "posterior_variance": betas * (1 - before) / (1 - abar),
    }
    for name, table in expected.items():
        np.testing.assert_allclose(s.exact[name], table, rtol=1e-9, atol=1e-15)
        assert_close(getattr(s, name), torch.from_numpy(table).float(), rtol=3e-7, atol=1e-12)
    assert (s.alphas_cumprod.diff() < 0).all()
    assert_close(getattr(s, f"_{kind}_beta_schedule")(), s.betas, rtol=0, atol=0)


def test_published_values():
    s = NoiseScheduler()
    assert s.alphas_cumprod[-1].item() == pytest.approx(4.0358e-5, rel=1e-4)
    assert s.sqrt_alphas_cumprod[500].item() == pytest.approx(0.2789, abs=5e-5)
    cosine = NoiseScheduler(schedule_type="cosine")
    assert cosine.betas[-1].item() == pytest.approx(0.999)
    assert cosine.alphas_cumprod[499].item() == pytest.approx(0.4938, abs=1e-4)  # half the signal's power is gone


def test_short_schedules_are_rescaled_only_where_asked():
    assert_close(NoiseScheduler(8).betas, torch.linspace(1e-4, 0.02, 8), rtol=1e-6, atol=0)
    rescaled = NoiseScheduler(100, rescale_betas=True)
    assert_close(rescaled.betas, torch.linspace(1e-3, 0.2, 100), rtol=1e-6, atol=0)
    assert rescaled.alphas_cumprod[-1] < 1e-4
    assert NoiseScheduler(8, rescale_betas=True).betas.max() < 1


@pytest.mark.parametrize("kind", ["linear", "cosine", "scaled_linear"])
def test_zero_terminal_snr(kind):
    plain, s = (NoiseScheduler(schedule_type=kind, zero_terminal_snr=z) for z in (False, True))
    root = np.sqrt(np.cumprod(1 - numpy_betas(kind)))
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    np.testing.assert_allclose(s.exact["alphas_cumprod"], root**2, rtol=1e-9, atol=1e-18)
    assert s.exact["alphas_cumprod"][-1] == 0
    assert s.snr[-1] == 0
    assert_close(s.alphas_cumprod[0], plain.alphas_cumprod[0])
    assert all(torch.isfinite(table).all() for table in s.buffers())


def test_karras_sigmas():
    sigmas = karras_sigmas(18, 0.002, 80)
    k = np.arange(18)
    expected = (80 ** (1 / 7) + k / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    np.testing.assert_allclose(sigmas, np.append(expected, 0), rtol=1e-12)
    assert karras_sigmas(1, 0.1, 10).tolist() == pytest.approx([10, 0])
    for wrong, message in [((0, 1, 2), "n must"), ((3, 2, 1), "sigma_min"), ((3, 1, 2, 0), "rho")]:
        with pytest.raises(ValueError, match=message):
            karras_sigmas(*wrong)


def test_names_of_the_number_of_timesteps():
    assert NoiseScheduler(num_timesteps=7).timesteps == NoiseScheduler(7).num_timesteps == 7
    with pytest.raises(ValueError, match="not both"):
        NoiseScheduler(7, num_timesteps=7)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"timesteps": 0}, "timesteps must be at least 1, got 0"),
        ({"beta_start": 0.0}, "0 < beta_start"),
        ({"beta_start": 0.1, "beta_end": 0.01}, "beta_start <= beta_end"),
        ({"beta_end": 1.0}, "beta_end < 1"),
        ({"schedule_type": "quadratic"}, "linear, cosine, scaled_linear, sigmoid, got 'quadratic'"),
        ({"timesteps": 1, "zero_terminal_snr": True}, "at least 2 timesteps"),
    ],
)
def test_arguments_are_checked(arguments, message):
    with pytest.raises(ValueError, match=message):
        NoiseScheduler(**arguments)


def test_config_rebuilds_the_schedule():
    s = NoiseScheduler(50, 1e-3, 0.1, "sigmoid", zero_terminal_snr=True, rescale_betas=True)
    again = NoiseScheduler(**s.config)
    assert again.config == s.config
    assert_close(again.betas, s.betas, rtol=0, atol=0)
    assert "sigmoid" in repr(s)


def test_casting_a_model_neither_rounds_nor_loses_the_tables():
    s = NoiseScheduler(10)
    assert not s.state_dict()
    for cast in (s.half, s.bfloat16, s.double, lambda: s.to_empty(device="cpu"), lambda: copy.deepcopy(s)):
        got = cast()
        assert_close(got.betas, NoiseScheduler(10).betas, rtol=0, atol=0)


def test_add_noise():
    s = NoiseScheduler()
    x0, t = torch.randn(3, 2, 4, 4), torch.tensor([0, 500, 999])
    noise = torch.randn_like(x0)
    signal, sigma = s.get_coefficients(t)
    assert signal.shape == sigma.shape == (3, 1, 1, 1)
    xt, same = s.add_noise(x0, t, noise)
    assert same is noise
    assert_close(xt, signal * x0 + sigma * noise)
    assert_close(add_noise(x0, t, s, noise)[0], xt)

    a, b, other = (s.add_noise(x0, t, seed=seed) for seed in (3, 3, 4))
    assert_close(a, b, rtol=0, atol=0)
    assert not torch.equal(a[1], other[1])
    assert_close(a[1], ops.philox_normal(x0.shape, ops.image_seeds(3, 3), 0, ops.Purpose.TRAINING_NOISE))
    torch.manual_seed(0)
    first = s.add_noise(x0, t)[1]
    torch.manual_seed(0)
    assert torch.equal(s.add_noise(x0, t)[1], first)
    g = [torch.Generator().manual_seed(5) for _ in range(2)]
    assert torch.equal(*(s.add_noise(x0, t, generator=k)[1] for k in g))
    with pytest.raises(ValueError, match="not both"):
        s.add_noise(x0, t, noise, seed=1)


@pytest.mark.parametrize("t", [torch.tensor([-1]), torch.tensor([10])])
def test_timesteps_out_of_range(t):
    s, x = NoiseScheduler(10), torch.zeros(1, 1, 2, 2)
    for call in (lambda: s.get_coefficients(t), lambda: s.add_noise(x, t), lambda: s.posterior_mean(x, x, t)):
        with pytest.raises(ValueError, match=r"t must be in 0\.\.9, got"):
            call()
    with pytest.raises(TypeError, match="t must be int64 or int32"):
        s.get_coefficients(torch.tensor([0.5]))


def test_timesteps_are_uniform_over_all():
    s = NoiseScheduler(10)
    t = s.sample_timesteps(20000, "cpu", torch.Generator().manual_seed(0))
    counts = torch.bincount(t, minlength=10)
    assert t.dtype is torch.int64
    assert len(counts) == 10
    assert ((counts - 2000).abs() < 5 * 45).all()  # five standard deviations of the binomial


def test_posterior_is_bayes_rule():
    """q(x_{t-1} | x_t, x_0) from the product of the two Gaussians q(x_t | x_{t-1}) and q(x_{t-1} | x_0)."""
    s = NoiseScheduler(50, rescale_betas=True)
    x0, xt = torch.randn(2, 1, 3, 3), torch.randn(2, 1, 3, 3)
    t = torch.tensor([1, 37])
    beta, before = (s.exact[k][t].reshape(-1, 1, 1, 1) for k in ("betas", "alphas_cumprod_prev"))
    precision = (1 - beta) / beta + 1 / (1 - before)
    mean = ((1 - beta).sqrt() / beta * xt + before.sqrt() / (1 - before) * x0) / precision
    assert_close(s.posterior_mean(x0, xt, t), mean.float())
    assert_close(s.posterior_variance[t].double(), 1 / precision.flatten(), rtol=1e-6, atol=0)
    assert s.posterior_variance[0] == 0


@given(st.sampled_from(PREDICTIONS), st.integers(0, T - 1))
@settings(max_examples=30, deadline=None)
def test_the_true_prediction_gives_x0_back(prediction, t):
    s = NoiseScheduler()
    x0, noise = torch.randn(1, 1, 4, 4).double(), torch.randn(1, 1, 4, 4).double()
    abar = s.exact["alphas_cumprod"][t]
    xt = abar.sqrt() * x0 + (1 - abar).sqrt() * noise
    k0, k1 = x0_coefficients(prediction, abar)
    target = training_target(prediction, x0, noise, torch.tensor([t]), s)
    assert_close(k0 * xt + k1 * target, x0, atol=1e-5, rtol=1e-5)  # the target's tables are float32


def test_predictions_are_checked():
    s = NoiseScheduler(10, zero_terminal_snr=True)
    abar = s.exact["alphas_cumprod"]
    with pytest.raises(ValueError, match="zero signal"):
        x0_coefficients("eps", abar)
    assert torch.isfinite(torch.stack([*(k for p in ("v", "x0", "edm") for k in x0_coefficients(p, abar))])).all()
    with pytest.raises(ValueError, match="eps, x0, v, edm, got 'noise'"):
        x0_coefficients("noise", abar)


def test_edm_is_karras_table_1():
    """c_skip, c_out and c_in with sigma_data 0.5, for x_EDM = x / sqrt(abar); the input then has unit variance."""
    abar = NoiseScheduler().exact["alphas_cumprod"]
    sigma, data = ((1 - abar) / abar).sqrt(), 0.5
    k0, k1 = x0_coefficients("edm", abar)
    assert_close(k0 * abar.sqrt(), data**2 / (sigma**2 + data**2), rtol=1e-9, atol=0)
    assert_close(k1, sigma * data / (data**2 + sigma**2).sqrt(), rtol=1e-9, atol=0)
    c_in = 1 / (sigma**2 + data**2).sqrt()
    assert_close(input_scale("edm", abar) * abar.sqrt(), c_in, rtol=1e-9, atol=0)
    assert all(input_scale(p, abar) is None for p in ("eps", "x0", "v"))
    s, t, x = NoiseScheduler(), torch.tensor([3, 700]), torch.randn(2, 1, 2, 2)
    assert_close(network_input("edm", x, t, s), x * input_scale("edm", abar)[t].float().reshape(2, 1, 1, 1))
    assert network_input("v", x, t, s) is x
