import pytest
import torch
from torch.testing import assert_close

from fastdiff.diffusion import SAMPLERS, NoiseScheduler, sample
from fastdiff.diffusion.editing import last_timesteps, make_edit

SHAPE = (5, 1, 4, 3)
IMAGE = torch.linspace(-0.9, 0.9, 12).reshape(1, 1, 4, 3)
MASK = torch.arange(12).reshape(4, 3) % 3 == 0  # a third is made anew


@pytest.fixture
def scheduler():
    return NoiseScheduler(40, schedule_type="cosine")


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_inpainting_keeps_the_known_region_bit_for_bit(sampler, toy, scheduler):
    made = sample(toy(), scheduler, SHAPE, sampler=sampler, steps=6, seed=0, clip=None, image=IMAGE, mask=MASK)
    kept = ~MASK.expand(SHAPE)
    assert torch.equal(made[kept], IMAGE.expand(SHAPE)[kept])
    new = made[MASK.expand(SHAPE)].reshape(5, -1)
    assert new.isfinite().all()
    assert not torch.isclose(new[:1], new[1:]).any()  # each image its own


def test_what_is_made_has_the_distribution_of_the_data(gaussian):
    """Pixels of this data are independent, so those that are made know nothing of those that stay."""
    scheduler = NoiseScheduler(200, schedule_type="cosine")
    shape, mask = (4000, 1, 2, 2), torch.tensor([[True, False], [False, True]])
    image = torch.full((1, 1, 2, 2), 0.9)
    denoise = gaussian(scheduler, mean=0.3, std=0.5)
    made = sample(denoise, scheduler, shape, sampler="ddim", clip=None, seed=1, image=image, mask=mask)[:, 0][:, mask]
    assert_close(made.mean(), torch.tensor(0.3), atol=4 * 0.5 / 8000**0.5, rtol=0)
    assert_close(made.std(), torch.tensor(0.5), atol=4 * 0.5 / 16000**0.5, rtol=0)


def test_along_the_way_the_known_region_is_as_noisy_as_the_rest(scheduler):
    seen = []

    def network(x, t):
        seen.append((int(t[0]), x.clone()))
        return torch.zeros_like(x)

    edited = {"image": IMAGE, "mask": torch.zeros(4, 3, dtype=torch.bool), "seed": 3, "sampler": "ddim", "steps": 8}
    assert torch.equal(sample(network, scheduler, SHAPE, **edited), IMAGE.expand(SHAPE))
    noises = []
    for t, x in seen:
        signal, noise = scheduler.sqrt_alphas_cumprod[t], scheduler.sqrt_one_minus_alphas_cumprod[t]
        noises.append((x - signal * IMAGE) / noise)
    for noise in noises[1:]:
        assert_close(noise, noises[0], atol=1e-4, rtol=1e-4)  # one noise on the whole way
    assert 0.6 < float(noises[0].std()) < 1.4


@pytest.mark.parametrize(("strength", "calls"), [(1.0, 10), (0.5, 5), (0.26, 3), (0.01, 1)])
def test_strength_is_the_share_of_steps(strength, calls, toy, scheduler):
    network = toy()
    made = sample(network, scheduler, SHAPE, sampler="ddim", steps=10, seed=0, image=IMAGE, strength=strength)
    assert len(network.calls) == calls
    assert made.shape == torch.Size(SHAPE)


def test_image_to_image_begins_from_the_noisy_image(gaussian):
    """With the exact denoiser a low strength stays near the image, a high one forgets it: the data's mean is -0.4."""
    scheduler = NoiseScheduler(200, schedule_type="cosine")
    denoise, image = gaussian(scheduler, mean=-0.4, std=0.3), torch.full((1, 1, 2, 2), 0.8)
    options = {"sampler": "ddim", "clip": None, "seed": 0, "image": image}
    means = [float(sample(denoise, scheduler, (500, 1, 2, 2), strength=s, **options).mean()) for s in (0.05, 0.4, 1.0)]
    assert means[0] > 0.6
    assert means[0] > means[1] > means[2]
    assert abs(means[2] + 0.4) < 0.1


def test_edits_are_the_same_in_any_batch(toy, scheduler):
    images, masks = torch.rand(SHAPE) * 2 - 1, torch.rand(SHAPE) < 0.5
    options = {"sampler": "ddpm", "steps": 5, "seed": 0, "image": images, "mask": masks, "strength": 0.8}
    whole = sample(toy(), scheduler, SHAPE, **options)
    assert torch.equal(sample(toy(), scheduler, SHAPE, batch_size=2, **options), whole)


def test_last_timesteps():
    assert last_timesteps([9, 6, 3, 0], 0.5) == [3, 0]
    assert last_timesteps([9], 0.1) == [9]


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"mask": MASK}, ValueError, "mask needs an image"),
        ({"strength": 0.5}, ValueError, "strength needs an image"),
        ({"image": IMAGE}, ValueError, "image needs a mask, .* or a strength"),
        ({"image": IMAGE, "strength": 0.0}, ValueError, r"strength must be above 0 and at most 1, got 0\.0"),
        ({"image": IMAGE, "strength": 1.5}, ValueError, r"strength must be above 0 and at most 1, got 1\.5"),
        ({"image": IMAGE, "mask": MASK.float()}, TypeError, r"mask must be bool, .* got torch\.float32"),
        ({"image": IMAGE, "mask": MASK[:2]}, ValueError, r"mask must have the shape \(5, 1, 4, 3\) .* got \(2, 3\)"),
        (
            {"image": IMAGE[..., :2], "mask": MASK},
            ValueError,
            r"image must have the shape \(5, 1, 4, 3\) .* got \(1, 1, 4, 2\)",
        ),
        ({"image": IMAGE.expand(2, 1, 4, 3), "mask": MASK}, ValueError, r"image must have the shape .* got \(2, 1, 4, 3\)"),
        ({"image": (IMAGE * 9).int(), "mask": MASK}, TypeError, r"image must be floating, .* got torch\.int32"),
    ],
)
def test_errors(options, error, match, toy, scheduler):
    with pytest.raises(error, match=match):
        sample(toy(), scheduler, SHAPE, steps=4, **options)


def test_a_grey_image_is_no_colour_image():
    with pytest.raises(ValueError, match="image must have the shape"):
        make_edit(IMAGE, MASK, None, (1, 3, 4, 3), "cpu")
