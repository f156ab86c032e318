import pytest
import torch
from torch.testing import assert_close

from fastdiff.diffusion import NoiseScheduler, sample
from fastdiff.models import SimpleUNet, UNet
from fastdiff.nn import AttentionBlock, CrossAttentionBlock


@pytest.fixture
def net(awake):
    return awake(UNet(1, 8, 16, (1, 2), 1, (2,), context_dim=6)).eval()


@pytest.fixture
def call():
    """x, t, context, mask for three images, the last of which has no context."""
    generator = torch.Generator().manual_seed(0)
    x, context = torch.randn(3, 1, 8, 7, generator=generator), torch.randn(3, 5, 6, generator=generator)
    return x, torch.tensor([1.0, 20.0, 300.0]), context, torch.arange(5) < torch.tensor([5, 2, 0])[:, None]


def test_every_place_with_self_attention_attends_to_the_context(net):
    own, cross = (
        [n.rpartition(".")[0] for n, m in net.named_modules() if isinstance(m, kind)]
        for kind in (AttentionBlock, CrossAttentionBlock)
    )
    assert own == cross
    assert "middle.0" in own


def test_images_see_their_own_tokens_alone(net, call):
    """In a batch as alone, in inference as with gradients; tokens that the mask leaves out change nothing."""
    x, t, context, mask = call
    want = net(x, t, context=context, context_mask=mask)
    assert want.requires_grad
    with torch.no_grad():
        for i, count in enumerate((5, 2)):
            alone = net(x[i : i + 1], t[i : i + 1], context=context[i : i + 1, :count])
            assert_close(alone, want[i : i + 1], rtol=1e-4, atol=1e-5)
        assert_close(net(x[2:], t[2:]), want[2:], rtol=1e-4, atol=1e-5)
        changed = torch.where(mask[..., None], context, 99.0)
        for _ in range(2):  # noted, then by its plan
            assert_close(net(x, t, context=changed, context_mask=mask), want, rtol=1e-4, atol=1e-5)
        assert not torch.isclose(net(x, t, context=context.flip(1), context_mask=mask)[1], want[1], rtol=1e-3).all()


def test_gradients_reach_the_context(net, call):
    x, t, context, mask = call
    context.requires_grad_()
    (grad,) = torch.autograd.grad(net(x, t, context=context, context_mask=mask).square().sum(), context)
    assert (grad[~mask] == 0).all()
    assert (grad[mask] != 0).any(1).all()


def test_sampling_under_a_context(net, call):
    _, _, context, mask = call
    scheduler = NoiseScheduler(20, schedule_type="cosine")
    options = {"sampler": "ddim", "steps": 4, "seed": 0, "context_mask": mask, "guidance": 3.0}
    whole = sample(net, scheduler, (3, 1, 8, 7), context=context, **options)
    assert_close(sample(net, scheduler, (3, 1, 8, 7), context=context, batch_size=2, **options), whole, rtol=1e-3, atol=1e-4)
    plain = sample(net, scheduler, (3, 1, 8, 7), context=context, **(options | {"guidance": 1.0}))
    assert not torch.isclose(plain[0], whole[0], atol=1e-3).all()
    assert_close(plain[2], whole[2], rtol=1e-3, atol=1e-4)  # without a context there is nothing to be guided to
    one = sample(net, scheduler, (3, 1, 8, 7), context=context[:1], **(options | {"context_mask": None}))
    assert_close(one[0], whole[0], rtol=1e-3, atol=1e-4)
    with pytest.raises(ValueError, match="context must have 3 rows, one for each image, or one for all, got 2"):
        sample(net, scheduler, (3, 1, 8, 7), context=context[:2], **options)


def test_the_config_rebuilds_it(net):
    assert UNet(**net.config).load_state_dict(net.state_dict())
    with pytest.raises(ValueError, match="context_dim must be None, got 6"):
        net.save_diffusers("nowhere")


def test_errors(net, call):
    x, t, context, mask = call
    with pytest.raises(ValueError, match="context was given to a network without one: build it with context_dim"):
        SimpleUNet(4)(x, t, context=context)
    with pytest.raises(ValueError, match="context_mask needs a context"):
        net(x, t, context_mask=mask)
    with pytest.raises(ValueError, match=r"context must have shape \(3, S, 6\)"):
        net(x, t, context=context[..., :4])
