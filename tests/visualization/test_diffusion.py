import numpy as np
import pytest
import torch
from PIL import Image

from fastdiff.visualization import to_uint8, visualize_diffusion_process


class LinearModel:
    """Mixes image and noise by t / 100, and records what it was given."""

    def __init__(self):
        self.noises = []

    def forward_diffusion(self, x0, t, noise):
        assert t.shape == (len(x0),)
        assert t.dtype == torch.long
        self.noises.append(noise)
        share = (t / 100).view(-1, 1, 1, 1)
        return (1 - share) * x0 + share * noise, noise


def test_timesteps_share_one_noise():
    model, x0 = LinearModel(), torch.rand(2, 3, 4, 5)
    noised = visualize_diffusion_process(model, x0, timesteps_to_show=[0, 50, 100])
    assert noised.shape == (3, 2, 3, 4, 5)
    assert all(torch.equal(noise, model.noises[0]) for noise in model.noises)
    assert torch.equal(noised[0], x0)
    assert torch.equal(noised[2], model.noises[0])
    torch.testing.assert_close(noised[1], (x0 + model.noises[0]) / 2)


def test_the_seed_decides_and_the_callers_generator_is_left_alone():
    x0 = torch.zeros(1, 1, 8, 8)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    a, b, other = (visualize_diffusion_process(LinearModel(), x0, [100], seed=seed) for seed in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, other)
    assert torch.equal(before, torch.get_rng_state())


def test_the_picture_has_a_row_per_image_and_a_column_per_timestep(tmp_path):
    x0 = torch.stack([torch.full((1, 48, 48), -1.0), torch.full((1, 48, 48), 1.0)])
    noised = visualize_diffusion_process(LinearModel(), x0, [0, 100, 50], save_path=tmp_path / "noising.png")
    picture = np.asarray(Image.open(tmp_path / "noising.png").convert("L"))
    assert picture.shape == (22 + 2 * 50 + 2, 3 * 50 + 2)
    assert (picture[24:72, 2:50] == 0).all()
    assert (picture[74:122, 2:50] == 255).all()
    assert (picture[24:72, 102:150] == to_uint8(noised[2, 0])[0, :, :, 0]).all()
    assert (picture[74:122, 52:100] == to_uint8(noised[1, 1])[0, :, :, 0]).all()
    assert picture[:22, 52:100].max() > 200  # its timestep


def test_wrong_input_is_named():
    with pytest.raises(ValueError, match="x0 must be"):
        visualize_diffusion_process(LinearModel(), torch.zeros(1, 8, 8), [0])
    with pytest.raises(ValueError, match="timesteps_to_show"):
        visualize_diffusion_process(LinearModel(), torch.zeros(1, 1, 8, 8), [])
