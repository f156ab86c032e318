import pytest
import torch
from torch.testing import assert_close

from fastdiff import ops
from fastdiff.diffusion import SAMPLERS, NoiseScheduler, run_sampler, sample, slerp
from fastdiff.diffusion.graph import GraphWalk
from fastdiff.diffusion.guidance import Conditions, guided
from fastdiff.diffusion.plan import Plan, thresholded
from fastdiff.diffusion.samplers import ddim, ddpm, heun, unipc
from fastdiff.diffusion.steps import Steps
from fastdiff.models import UNet

SHAPE = (5, 1, 4, 3)


@pytest.fixture
def scheduler():
    return NoiseScheduler(20, rescale_betas=True)


@pytest.mark.parametrize(
    "options", [{}, {"sampler": "ddim"}, {"sampler": "ddim", "eta": 1.0, "steps": 7}, {"sampler": "unipc", "threshold": 0.9}]
)
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
    steps = ddpm(scheduler, [17, 9, 2], "x0")
    seeds = ops.image_seeds(0, 2)
    x = expected = torch.randn(2, 1, 3, 3)
    for k, row in enumerate(steps.rows):
        expected = row[3] * expected + row[4] * ops.philox_normal(x.shape, seeds, k, ops.Purpose.SAMPLER_STEP)
    got, _ = run_sampler(lambda x, t: torch.zeros_like(x), x, steps, seeds=seeds)
    assert_close(got, expected.float())
    with pytest.raises(ValueError, match="seeds must be given"):
        run_sampler(lambda x, t: x, x, steps)


def test_frames_and_callback(toy, scheduler):
    images, frames = sample(toy(), scheduler, SHAPE, seed=0, frames=3, batch_size=2)
    assert frames.shape == (3, *SHAPE)
    assert torch.equal(frames[-1], images)
    seen = []
    steps = ddim(scheduler, [15, 10, 5, 0])
    x, kept = run_sampler(toy(), torch.randn(SHAPE), steps, frames=2, callback=lambda *a: seen.append(a))
    assert [(k, t) for k, t, _, _ in seen] == [(0, 15), (1, 10), (2, 5), (3, 0)]
    assert torch.equal(kept, torch.stack([seen[1][2], seen[3][2]]))
    assert torch.equal(seen[-1][3], x)  # the last step ends in x0
    with pytest.raises(ValueError, match=r"frames must be in 0\.\.4"):
        run_sampler(toy(), x, steps, frames=5)


def test_a_callback_can_replace_x(scheduler):
    """The seam for inpainting: what it returns goes on, and comes out where it was the last."""
    steps, zero = ddim(scheduler, [15, 10, 5, 0], "x0"), torch.zeros(2, 1, 2, 2)
    x, frames = run_sampler(lambda x, t: x, zero, steps, frames=4, callback=lambda k, *_: zero + 1 if k == 1 else None)
    assert_close(frames[:2], torch.stack([zero, zero + 1]))
    assert_close(frames[2], steps.rows[2, 2:4].sum().float().expand(2, 1, 2, 2))
    x, _ = run_sampler(lambda x, t: x, zero, steps, callback=lambda k, *_: zero + k)
    assert torch.equal(x, zero + 3)


def test_timesteps_of_ones_own(toy, scheduler):
    network = toy()
    a = sample(network, scheduler, SHAPE, seed=0, steps=4)
    assert torch.equal(a, sample(network, scheduler, SHAPE, seed=0, timesteps=[15, 10, 5, 0]))
    told = []
    network.forward = lambda x, t: told.append(t) or x
    sample(network, scheduler, SHAPE, seed=0, timesteps=[15, 3], sampler="heun")
    sample(network, scheduler, SHAPE, seed=0, timesteps=[15, 2.5])
    assert [(t.dtype, t.tolist()) for t in told] == [
        *((torch.int64, [k] * 5) for k in (15, 3, 3)),
        *((torch.float32, [k] * 5) for k in (15, 2.5)),
    ]


def test_spacing_by_default(toy, scheduler):
    for sampler, spacing in [("heun", "karras"), ("dpmpp_2m", "leading")]:
        options = {"sampler": sampler, "steps": 4, "seed": 0}
        x = sample(toy(), scheduler, SHAPE, **options)
        assert torch.equal(x, sample(toy(), scheduler, SHAPE, spacing=spacing, **options)), sampler
        assert not torch.equal(x, sample(toy(), scheduler, SHAPE, spacing="trailing", **options)), sampler


def test_all_columns_reach_their_tensors():
    """k5 is of the last x0, k6 of the one before; with and without fixed buffers."""
    rows = torch.zeros(3, 7, dtype=torch.float64)
    rows[:, 1] = 1
    rows[2] = torch.tensor([0, 1, 1, 0.5, 0, 10, 100])
    steps = Steps([7, 3, 2], rows, torch.tensor([1.0, 1, 4]).double())

    def denoise(x, t):
        return t.reshape(-1, 1).float() + (x if int(t[0]) == 2 else 0)

    x, start = torch.zeros(2, 1), torch.zeros(2, 1)
    rows[1, 2] = 1  # x after row 1 is 3
    for walk in (lambda: run_sampler(denoise, x, steps, clip=None)[0], lambda: fixed(denoise, start, steps, clip=None)):
        assert_close(walk(), torch.full((2, 1), (2 + 4 * 3) + 0.5 * 3 + 10 * 3 + 100 * 7.0))


@torch.no_grad()
def fixed(denoise, x, steps, clip=1.0, threshold=None, seeds=None):
    """The loop on buffers that stay, as a captured graph replays it, without the graph."""
    walk = GraphWalk(Plan(denoise, steps, x, clip, threshold, seeds), x)
    for _ in range(2):  # capturing runs a row before, which `rewind` undoes
        walk.rewind()
        for k in range(len(steps.timesteps)):
            walk(k)
    return walk.x


@pytest.mark.parametrize("name", SAMPLERS)
def test_fixed_buffers_give_the_same_images(toy, scheduler, name):
    network, seeds, x = toy(num_classes=2).eval(), ops.image_seeds(3, 5), torch.randn(SHAPE)
    options = {"churn": 2.0} if name == "euler" else {}
    for prediction in ("v", "edm"):
        steps = SAMPLERS[name](scheduler, [18, 11.5, 7, 4, 1], prediction, **options)
        denoise = guided(network, Conditions(torch.tensor([0, 1, 0, 2, 1])), 2.0)
        for threshold in (None, 0.8):
            want, _ = run_sampler(denoise, x, steps, seeds=seeds, threshold=threshold)
            assert torch.equal(fixed(denoise, x, steps, threshold=threshold, seeds=seeds), want)


def test_a_graph_that_cannot_be_captured(toy, scheduler, monkeypatch):
    """What follows on a GPU from a network that synchronises, with CUDA's part played by functions here."""

    def fails(work, rewind):
        raise RuntimeError("operation not permitted when stream is capturing")

    class OnCuda(torch.Tensor):
        is_cuda = True

    monkeypatch.setattr("fastdiff.diffusion.graph.captured", fails)
    x, steps = torch.randn(SHAPE).as_subclass(OnCuda), ddim(scheduler, list(range(19, -1, -1)))
    plan = Plan(toy().eval(), steps, torch.randn(SHAPE), 1.0, None, None)
    with pytest.warns(UserWarning, match="without a CUDA graph, which could not be captured: operation not permitted"):
        assert GraphWalk.of(plan, x, None) is None
    with pytest.raises(RuntimeError, match="graph=True: this network cannot be captured"):
        GraphWalk.of(plan, x, True)
    assert GraphWalk.of(plan, x, False) is None

    monkeypatch.setattr("fastdiff.diffusion.graph.captured", lambda work, rewind: rewind() or work)
    for graph in (None, True):
        walk = GraphWalk.of(plan, x, graph)
        plain, _ = run_sampler(plan.denoise, torch.Tensor(x), steps)
        for k in range(20):
            got, _ = walk(k)
        assert torch.equal(torch.Tensor(got), plain)


def test_thresholding_is_imagens():
    generator = torch.Generator().manual_seed(0)
    x0 = 2 * torch.randn(3, 2, 5, 5, generator=generator)
    x0[1] *= 0.1  # within the range: left as it is
    for share in (0.5, 0.93, 1.0):
        s = x0.abs().flatten(1).quantile(share, dim=1).clamp(min=1).reshape(3, 1, 1, 1)
        assert_close(thresholded(x0, share, 1.0), x0.clamp(-s, s) / s)
    assert_close(thresholded(x0, 0.93, 2.0)[1], x0[1])
    assert thresholded(x0, 0.93, 2.0).abs().max().item() == pytest.approx(2)
    assert thresholded(x0[:0], 0.9, 1.0).shape == (0, 2, 5, 5)


@pytest.mark.parametrize("sampler", [ddim, unipc, heun])
def test_thresholding_takes_the_place_of_clamping(scheduler, sampler):
    steps, x = sampler(scheduler, [15, 10, 5], "x0"), torch.randn(2, 1, 4, 4)
    seen = []
    run_sampler(lambda x, t: 3 * x, x, steps, threshold=0.75, callback=lambda k, t, x, x0: seen.append(x0))
    assert_close(seen[0], thresholded(3 * x, 0.75, 1.0))
    assert all(x0.abs().max() <= 1 for x0 in seen)


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
        ({"sampler": "plms"}, "dpmpp_2m_sde, unipc, got 'plms'"),
        ({"spacing": "even"}, "leading, linspace, trailing, karras, got 'even'"),
        ({"timesteps": [5, 3], "steps": 2}, "give steps and spacing, or the timesteps"),
        ({"timesteps": [20, 3]}, r"timesteps must fall strictly within 0\.\.19"),
        ({"threshold": 0.0}, "threshold must be above 0 and at most 1, got 0"),
        ({"threshold": 0.9, "clip": None}, "threshold needs clip"),
        ({"graph": True}, "graph=True needs images on CUDA, got cpu"),
        ({"steps": 0}, r"steps must be in 1\.\.20, the number of timesteps, got 0"),
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


def test_options_that_the_sampler_has_not(toy, scheduler):
    with pytest.raises(TypeError, match="'eta' is no option of sampler 'ddpm', which has variance"):
        sample(toy(), scheduler, SHAPE, eta=1.0)


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
