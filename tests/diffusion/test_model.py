import json

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from fastdiff import ops
from fastdiff.diffusion import DDPMSampler, DiffusionModel, NoiseScheduler, generate_images, generate_interpolation


@pytest.fixture
def model(toy):
    return DiffusionModel(20, network=toy(), img_shape=(6, 5, 1))


def test_the_schedule_is_in_reach(model):
    assert model.timesteps == len(model.betas) == 20
    assert_close(model.alphas.cumprod(0), model.alphas_cumprod)


def test_forward_gives_prediction_and_target(toy):
    x, t = torch.randn(3, 1, 4, 4), torch.tensor([0, 10, 19])
    noise = torch.randn_like(x)
    for prediction in ("eps", "x0", "v"):
        m = DiffusionModel(20, network=toy().eval(), prediction=prediction)
        a, b = m.scheduler.get_coefficients(t)
        xt = a * x + b * noise
        target = {"eps": noise, "x0": x, "v": a * noise - b * x}[prediction]
        predicted, actual = m(x, t, noise=noise)
        assert_close(actual, target)
        assert_close(predicted, m.network(xt, t))
        loss = m.compute_loss(x, t, noise=noise)
        assert loss.dim() == 0
        assert_close(loss, (predicted - target).square().mean())


def test_reverse_step_is_equation_11(model):
    x, eps = torch.randn(2, 3, 1, 6, 5)
    t = torch.tensor([0, 7, 19])
    tables = (model.betas, model.alphas_cumprod, model.scheduler.posterior_variance)
    beta, abar, variance = (table[t].reshape(-1, 1, 1, 1) for table in tables)
    mean = (x - beta / (1 - abar).sqrt() * eps) / (1 - beta).sqrt()
    after = model.reverse_diffusion_step(x, t, eps, seed=0)
    assert_close(after[0], mean[0], atol=1e-4, rtol=1e-4)
    z = (after - mean)[1:] / variance[1:].sqrt()
    assert 0.5 < z.std() < 1.5
    assert torch.equal(model.reverse_diffusion_step(x, t, eps, seed=0), after)
    one = [model.reverse_diffusion_step(x, torch.full((3,), k), 0 * x, seed=0) for k in (7, 8)]
    z7, z8 = (
        (y - x / (1 - model.betas[k]).sqrt()) / model.scheduler.posterior_variance[k].sqrt()
        for y, k in zip(one, (7, 8), strict=True)
    )
    assert not torch.allclose(z7, z8, atol=0.1)  # another timestep, another noise


def test_keyed_loss_is_the_same_for_any_split(toy):
    m = DiffusionModel(20, network=toy(num_classes=4).eval(), label_dropout=0.5)
    x, labels, seeds = torch.randn(8, 1, 4, 4), torch.arange(8) % 4, ops.image_seeds(0, 8)
    whole = m.keyed_loss(x, labels, seeds, 3)
    assert torch.equal(whole, m.keyed_loss(x, labels, seeds, 3))
    assert not torch.equal(whole, m.keyed_loss(x, labels, seeds, 4))
    parts = [m.keyed_loss(x[k : k + 1], labels[k : k + 1], seeds[k : k + 1], 3) for k in range(8)]
    assert_close(torch.stack(parts).mean(), whole)


def test_keyed_draws(toy):
    m = DiffusionModel(10, network=toy(num_classes=2).eval(), label_dropout=0.25)
    seen = {}
    m.network.forward = lambda xt, t, labels: seen.update(t=t, labels=labels) or xt
    n = 4000
    m.keyed_loss(torch.zeros(n, 1, 1, 1), torch.ones(n, dtype=torch.long), ops.image_seeds(0, n), 0)
    counts = torch.bincount(seen["t"], minlength=10)
    assert len(counts) == 10
    assert ((counts - 400).abs() < 5 * 19).all()
    assert (seen["labels"] == 2).float().mean().item() == pytest.approx(0.25, abs=0.035)


@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_training_lowers_the_loss(toy, prediction):
    m = DiffusionModel(20, network=toy().eval(), prediction=prediction)
    optimizer = torch.optim.Adam(m.parameters(), lr=0.05)
    x = 0.1 * torch.randn(16, 1, 4, 4)
    losses = [m.train_step(x, optimizer, seeds=ops.image_seeds(0, 16)) for _ in range(30)]
    assert losses[-1] < losses[0]


def test_train_step_takes_both_layouts(toy):
    def loss(images):
        m = DiffusionModel(20, network=toy(channels=3).eval(), img_shape=(4, 5, 3))
        return m.train_step(images, torch.optim.SGD(m.parameters(), 0.1), seeds=ops.image_seeds(0, 2))

    x = np.random.default_rng(0).normal(size=(2, 4, 5, 3))
    nchw = torch.from_numpy(x).permute(0, 3, 1, 2)
    assert loss(x) == loss(nchw) == loss(torch.from_numpy(x)) == loss(nchw.numpy())


def test_train_step_refuses_what_cannot_be_trained_on(model):
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for images, error, message in [
        (np.zeros((2, 4, 4, 1), np.uint8), TypeError, "normalize_images"),
        (np.zeros((2, 4, 4, 3)), ValueError, r"\[N, 1, H, W\] or an array \[N, H, W, 1\], got \(2, 4, 4, 3\)"),
        (torch.zeros(2, 1, 4), ValueError, "images must be a tensor"),
        (torch.full((2, 1, 4, 4), torch.nan), FloatingPointError, "the images are not finite"),
    ]:
        with pytest.raises(error, match=message):
            model.train_step(images, optimizer)
    assert model.network.weight.item() == 0.5


def test_sample_and_generate(model, capsys):
    x = model.sample((3, 1, 6, 5), torch.device("cpu"), seed=1)
    assert x.shape == (3, 1, 6, 5)
    images = model.generate(3, seed=1)
    assert "20/20" in capsys.readouterr().err
    assert torch.equal(images, x.permute(0, 2, 3, 1))
    assert images.abs().max() <= 1
    with torch.inference_mode():
        assert not model.generate(1, show_progress=False).is_inference()
    with pytest.raises(ValueError, match="call sample for frames"):
        model.generate(1, frames=2)


def test_interpolation_ends_in_the_images_of_its_seeds(model):
    x = model.interpolate(3, 4, 5)
    assert x.shape == (5, 1, 6, 5)
    for image, seed in [(x[0], 3), (x[-1], 4)]:
        assert_close(image, model.sample((1, 1, 6, 5), sampler="ddim", seed=seed)[0])
    assert torch.equal(model.interpolate(3, 4, 2, sampler="ddpm")[0], model.sample((1, 1, 6, 5), seed=3)[0])
    with pytest.raises(ValueError, match="num_images must be at least 1"):
        model.interpolate(0, 1, 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prediction": "score"}, "prediction must be one of"),
        ({"label_dropout": 0.1}, "label_dropout needs a network with classes"),
        ({"label_dropout": 1.0}, r"label_dropout must be in \[0, 1\)"),
        ({"img_shape": (8, 8)}, r"img_shape must be \(H, W, C\)"),
        ({"num_classes": 3}, "not both: num_classes"),
        ({"groups": 3}, "not both: groups"),
        ({"scheduler": NoiseScheduler(5, zero_terminal_snr=True)}, "zero signal"),
    ],
)
def test_arguments_are_checked(toy, options, message):
    with pytest.raises(ValueError, match=message):
        DiffusionModel(10, network=toy(), **options)


def test_the_schedule_stays_out_of_the_state_and_of_casts(model):
    assert list(model.state_dict()) == ["network.weight"]
    assert model.bfloat16().betas.dtype is torch.float32


def test_unet_is_built_rebuilt_and_described():
    m = DiffusionModel(
        6, img_shape=(8, 8, 3), model_channels=8, time_embed_dim=16, num_classes=2, label_dropout=0.1, loss="huber"
    )
    assert m.network.config["channel_multipliers"] == [1, 2, 4]
    built = m.build_unet(base_channels=8, channel_multipliers=(1, 2), num_res_blocks=1)
    assert built is m.network
    assert m.num_classes == 2
    again = DiffusionModel.from_config(json.loads(json.dumps(m.config)))
    assert again.config == m.config
    again.load_state_dict(m.state_dict())
    options = {"seed": 0, "labels": [0, 1], "guidance": 2.0, "show_progress": False}
    assert_close(again.generate(2, **options), m.generate(2, **options))
    with pytest.raises(ValueError, match="UNet"):
        DiffusionModel.from_config({**m.config, "network": {"type": "Unet"}})


def test_a_foreign_network_has_no_config(model):
    with pytest.raises(TypeError, match=r"ToyNetwork is not in fastdiff\.models\.NETWORKS"):
        _ = model.config


def test_ddpm_sampler(toy, model):
    assert DDPMSampler(toy(channels=3), NoiseScheduler(4)).sample(num_samples=2).shape == (2, 3, 28, 28)
    sampler = DDPMSampler(toy(channels=3), NoiseScheduler(4), "cpu", img_shape=(4, 6, 3))
    assert sampler.sample(2, sampler="ddim", steps=2).shape == (2, 3, 4, 6)
    whole = DDPMSampler(model, model.scheduler)
    assert torch.equal(whole.sample(2, seed=5), model.sample((2, 1, 6, 5), seed=5))


def test_generate_images_and_interpolation(model, tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr("PIL.Image.Image.show", lambda picture: shown.append(picture.size))
    x = generate_images(model, 3, "cpu", save_path=tmp_path / "x.png", seed=7, sampler="ddim", steps=5)
    assert torch.equal(x, model.sample((3, 1, 6, 5), seed=7, sampler="ddim", steps=5))
    assert len(shown) == 1
    generate_images(model, 1, "cpu", show_images=False)
    assert len(shown) == 1
    y = generate_interpolation(model, 4, "cpu", save_path=tmp_path / "y.png", seed=7)
    assert torch.equal(y, generate_interpolation(model, 4, "cpu", seed=7))
    assert len(y) == 4
    assert all((tmp_path / name).stat().st_size for name in ("x.png", "y.png"))
