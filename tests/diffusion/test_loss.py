import math

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from fastdiff import ops
from fastdiff.diffusion import DiffusionModel, NoiseScheduler
from fastdiff.diffusion.loss import WEIGHTINGS, diffusion_loss, loss_weights
from fastdiff.diffusion.prediction import PREDICTIONS, training_target, x0_coefficients

GAMMA = 5
PAPERS = {  # as the papers and, for v, Salimans & Ho's conversion have them
    ("min_snr", "eps"): lambda snr: min(snr, GAMMA) / snr,
    ("min_snr", "x0"): lambda snr: min(snr, GAMMA),
    ("min_snr", "v"): lambda snr: min(snr, GAMMA) / (snr + 1),
    ("p2", "eps"): lambda snr: 1 / (1 + snr),
    ("p2", "x0"): lambda snr: snr / (1 + snr),
}


@pytest.mark.parametrize(("weighting", "prediction"), PAPERS)
def test_weights_are_those_of_the_papers(weighting, prediction):
    abar = NoiseScheduler().exact["alphas_cumprod"]
    snr = (abar / (1 - abar)).tolist()
    expected = torch.tensor([PAPERS[weighting, prediction](s) for s in snr], dtype=torch.float64)
    assert snr[0] > GAMMA > snr[-1]
    assert_close(loss_weights(weighting, prediction, abar), expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize("weighting", WEIGHTINGS[1:])
def test_a_weighting_weighs_the_same_error_of_x0_in_any_prediction(weighting):
    s = NoiseScheduler()
    generator = torch.Generator().manual_seed(0)
    x0, wrong, noise = torch.randn(3, 6, 1, 4, 4, generator=generator).double()
    t = torch.tensor([1, 40, 200, 500, 800, 990])
    abar = s.exact["alphas_cumprod"][t].reshape(-1, 1, 1, 1)
    xt = abar.sqrt() * x0 + (1 - abar).sqrt() * noise
    found = []
    for prediction in PREDICTIONS:
        k0, k1 = x0_coefficients(prediction, abar)
        output = (x0 + 0.1 * wrong - k0 * xt) / k1  # a network that takes x0 + 0.1 wrong for the image
        target = training_target(prediction, x0, noise, t, s)
        found.append(diffusion_loss(output, target, t, s, prediction, weighting=weighting))
    assert_close(torch.stack(found), found[0].expand(len(found)), rtol=2e-3, atol=0)


def test_losses():
    s, t = NoiseScheduler(), torch.tensor([3, 600])
    a, b = 3 * torch.randn(2, 2, 1, 4, 4)
    assert torch.equal(diffusion_loss(a, b, t, s, "eps"), F.mse_loss(a, b))
    assert torch.equal(diffusion_loss(a, b, t, s, "eps", "huber"), F.huber_loss(a, b, delta=1.0))
    weights = s.loss_weights("eps", "min_snr")[t]
    each = torch.stack([F.huber_loss(p, q) for p, q in zip(a, b, strict=True)])
    assert_close(diffusion_loss(a, b, t, s, "eps", "huber", "min_snr"), (weights * each).mean())
    one = diffusion_loss(a, b, t[:1], s, "eps", "mse", "p2")
    assert_close(one, s.loss_weights("eps", "p2")[3] * F.mse_loss(a, b))


@pytest.mark.parametrize("options", [{"zero_terminal_snr": True}, {"schedule_type": "cosine"}])
def test_weights_are_finite(options):
    s = NoiseScheduler(**options)
    for prediction in PREDICTIONS[1:]:
        for weighting in WEIGHTINGS:
            w = s.loss_weights(prediction, weighting)
            assert torch.isfinite(w).all()
            assert (w[:-1] > 0).all()


@pytest.mark.parametrize("loss", ["mse", "huber"])
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_the_model_trains_by_it(toy, loss, weighting):
    m = DiffusionModel(20, network=toy().eval(), prediction="edm", loss=loss, loss_weighting=weighting)
    x, t = torch.randn(3, 1, 4, 4), torch.tensor([0, 10, 19])
    noise = torch.randn_like(x)
    want = diffusion_loss(*m(x, t, noise=noise), t, m.scheduler, "edm", loss, weighting)
    assert_close(m.compute_loss(x, t, noise=noise), want)
    seeds = ops.image_seeds(0, 3)
    u = ops.philox_uniform(seeds, 4, ops.Purpose.TRAINING_TIMESTEP)
    _, noise = m.scheduler.add_keyed_noise(x, (u * 20).long(), seeds, 4)
    assert_close(m.keyed_loss(x, None, seeds, 4), m.compute_loss(x, (u * 20).long(), noise=noise))
    optimizer = torch.optim.Adam(m.parameters(), lr=0.05)
    losses = [m.train_step(0.1 * x, optimizer, seeds=seeds) for _ in range(20)]
    assert losses[-1] < losses[0]


def test_edm_gives_the_network_unit_variance_in_training_and_sampling(toy):
    network = toy().eval()
    seen = {}
    network.forward = lambda x, t: seen.setdefault(int(t[0]), x.std().item()) and x * 0
    m = DiffusionModel(1000, network=network, prediction="edm")
    x0 = 0.5 * torch.randn(1, 1, 64, 64)
    for t in (0, 300, 999):
        m.compute_loss(x0, torch.tensor([t]))
        assert seen[t] == pytest.approx(1, abs=0.05)
    seen.clear()
    m.sample((1, 1, 64, 64), sampler="unipc", steps=100, clip=None, seed=0)
    assert seen[990] == pytest.approx(1, abs=0.05)
    # F = 0 makes x0 = c_skip x_EDM: the best guess for data N(0, 0.25), whose flow keeps x in unit variance.
    assert all(std == pytest.approx(1, abs=0.05) for std in seen.values())
    assert math.isfinite(sum(seen.values()))


def test_arguments_are_checked(toy):
    for options, message in [({"loss": "l1"}, "mse, huber, got 'l1'"), ({"loss_weighting": "snr"}, "min_snr, p2, got 'snr'")]:
        with pytest.raises(ValueError, match=message):
            DiffusionModel(10, network=toy(), **options)
