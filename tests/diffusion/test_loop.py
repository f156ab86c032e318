import pytest
import torch
from torch.testing import assert_close

from fastdiff import ops
from fastdiff.diffusion import NoiseScheduler, run_sampler, sample, slerp
from fastdiff.diffusion.samplers import ddim, ddpm
from fastdiff.models import UNet

SHAPE = (5, 1, 4, 3)


@pytest.fixture
def scheduler():
    return NoiseScheduler(20, rescale_betas=True)


@pytest.mark.parametrize("options", [{}, {"sampler": "ddim"}, {"sampler": "ddim", "eta": 1.0, "steps": 7}])
def test_an_image_is_the_same_in_any_batch(toy, scheduler, options):
    whole = sample(toy(), scheduler, SHAPE, seed=3, **options)
    assert torch.equal(sample(toy(), scheduler, SHAPE, seed=3, **options), whole)
    for size in (1, 2, 4, 9):
        assert torch.equal(sample(toy(), scheduler, SHAPE, seed=3, batch_size=size, **options), whole)
    more = sample(toy(), scheduler, (9, *SHAPE[1:]), seed=3, **options)
    assert torch.equal(more[:5], whole)
    own = ops.image_seeds(3, 5)[[2]]
    assert torch.equal(sample(toy(), scheduler, (1, *SHAPE[1:]), seeds=own, **options), whole[2:3])
    assert not torch.equal(sample(toy(), scheduler, SHAPE, seed=4, **options), whole)


def test_the_default_seed_comes_from_torch(toy, scheduler):
    torch.manual_seed(1)
    a, b = (sample(toy(), scheduler, SHAPE) for _ in range(2))
    torch.manual_seed(1)
    assert torch.equal(sample(toy(), scheduler, SHAPE), a)
    assert not torch.equal(a, b)
    one, two = (sample(toy(), scheduler, SHAPE, generator=torch.Generator().manual_seed(2)) for _ in range(2))
    assert torch.equal(one, two)


def test_ddim_depends_on_the_start_alone(toy, scheduler):
    start = torch.randn(SHAPE)
    a, b = (sample(toy(), scheduler, SHAPE, sampler="ddim", x_start=start, seed=seed) for seed in (1, 2))
    assert torch.equal(a, b)


def test_steps_see_noise_by_their_position(scheduler):
    timesteps, rows = ddpm(scheduler, [17, 9, 2], "x0")
    seeds = ops.image_seeds(0, 2)
    x = expected = torch.randn(2, 1, 3, 3)
    for k, row in enumerate(rows):
        expected = row[3] * expected + row[4] * ops.philox_normal(x.shape, seeds, k, ops.Purpose.SAMPLER_STEP)
    got, _ = run_sampler(lambda x, t: torch.zeros_like(x), x, timesteps, rows, seeds=seeds)
    assert_close(got, expected.float())
    with pytest.raises(ValueError, match="seeds must be given"):
        run_sampler(lambda x, t: x, x, timesteps, rows)


def test_frames_and_callback(toy, scheduler):
    images, frames = sample(toy(), scheduler, SHAPE, seed=0, frames=3, batch_size=2)
    assert frames.shape == (3, *SHAPE)
    assert torch.equal(frames[-1], images)
    seen = []
    timesteps, rows = ddim(scheduler, [15, 10, 5, 0])
    x, kept = run_sampler(toy(), torch.randn(SHAPE), timesteps, rows, frames=2, callback=lambda *a: seen.append(a))
    assert [(k, t) for k, t, _, _ in seen] == [(0, 15), (1, 10), (2, 5), (3, 0)]
    assert torch.equal(kept, torch.stack([seen[1][2], seen[3][2]]))
    assert torch.equal(seen[-1][3], x)  # the last step ends in x0
    with pytest.raises(ValueError, match=r"frames must be in 0\.\.4"):
        run_sampler(toy(), x, timesteps, rows, frames=5)


def test_results_are_ordinary_tensors(toy, scheduler):
    network = toy()
    with torch.inference_mode():
        x = sample(network, scheduler, SHAPE)
    assert not x.is_inference()
    assert not x.requires_grad
    (x * network.weight).sum().backward()


def test_the_network_samples_in_eval_and_gets_its_modes_back(toy, scheduler):
    network = torch.nn.Sequential()
    network.forward = lambda x, t: network.inner(x, t)
    network.inner = toy()
    network.inner.dropout.eval()  # frozen by the user
    network.train(True)
    network.inner.dropout.eval()
    sample(network, scheduler, SHAPE)
    assert network.inner.calls
    assert not any(training for _, training in network.inner.calls)
    assert [m.training for m in (network, network.inner, network.inner.dropout)] == [True, True, False]


def test_progress(toy, scheduler, capsys):
    sample(toy(), scheduler, SHAPE, steps=4)
    assert not capsys.readouterr().err
    sample(toy(), scheduler, SHAPE, steps=4, progress=True)
    assert "4/4" in capsys.readouterr().err


def test_video_and_no_images(toy, scheduler):
    assert sample(toy(), scheduler, (2, 1, 3, 4, 4)).shape == (2, 1, 3, 4, 4)
    assert sample(toy(), scheduler, (0, 1, 4, 4)).shape == (0, 1, 4, 4)


def test_sampling_with_labels(toy, scheduler):
    network = toy(num_classes=3)
    labels = torch.tensor([0, 1, 2, 3, 1])
    whole = sample(network, scheduler, SHAPE, labels=labels, guidance=2.0, seed=0)
    assert torch.equal(sample(network, scheduler, SHAPE, labels=labels, guidance=2.0, seed=0, batch_size=2), whole)
    one, many = (sample(network, scheduler, SHAPE, labels=k, seed=0) for k in (1, [1] * 5))
    assert torch.equal(one, many)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampler": "euler"}, "ddpm, ddim, got 'euler'"),
        ({"steps": 21}, r"steps must be in 1\.\.20"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"prediction": "noise"}, "prediction must be one of"),
        ({"seeds": torch.arange(4)}, r"seeds must have shape \(5,\)"),
        ({"seeds": torch.arange(5), "seed": 0}, "not both"),
        ({"x_start": torch.zeros(1)}, "x_start must have shape"),
        ({"labels": [0, 1]}, "labels must be integers, one or 5"),
        ({"labels": 4}, r"labels must be in 0\.\.2, or 3 for no class"),
        ({"guidance": 2.0}, "needs labels"),
        ({"guidance_rescale": 2.0}, r"guidance_rescale must be in 0\.\.1"),
        ({"clip": 0}, "clip must be above 0"),
    ],
)
def test_arguments_are_checked(toy, scheduler, options, message):
    with pytest.raises(ValueError, match=message):
        sample(toy(num_classes=3), scheduler, SHAPE, **options)


def test_guidance_needs_a_null_class(toy, scheduler):
    with pytest.raises(ValueError, match="null class"):
        sample(toy(), scheduler, SHAPE, labels=0, guidance=2.0)
    with pytest.raises(ValueError, match="null class"):
        sample(UNet(1, 8, 16, (1,), 1, (), num_classes=3, null_class=False), scheduler, (5, 1, 8, 8), labels=0, guidance=2.0)


def test_slerp_keeps_the_spread_of_noise():
    a, b = torch.randn(2, 4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert_close(slerp(a, b, 0.0), a)
    assert_close(slerp(a, b, 1.0), b)
    assert slerp(a, b, 0.5).std().item() == pytest.approx(1, abs=0.02)
    assert ((a + b) / 2).std().item() == pytest.approx(0.71, abs=0.02)
    each = slerp(a, b, torch.tensor([0.0, 0.25, 0.5, 1.0]))
    assert_close(each[1], slerp(a[1:2], b[1:2], 0.25)[0])
    assert_close(slerp(a, a, 0.3), a)
    assert torch.isfinite(slerp(a, 0 * b, 0.3)).all()
    with pytest.raises(ValueError, match="one shape"):
        slerp(a, b[:2], 0.5)
