import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from fastdiff.nn import CrossAttentionBlock


def plain_cross_attention(
    block: CrossAttentionBlock, x: torch.Tensor, context: torch.Tensor, mask: torch.Tensor, groups: int, head_dim: int
) -> torch.Tensor:
    """The formula image by image, over the tokens that count alone."""
    p = dict(block.named_parameters())
    done = []
    for image, tokens, counts in zip(x, context, mask, strict=True):
        c = len(image)
        u = F.group_norm(image[None], groups, p["norm.weight"], p["norm.bias"])[0].reshape(c, -1).T
        k, v = (tokens[counts] @ p["kv.weight"].T + p["kv.bias"]).split(c, dim=1)
        q = u @ p["q.weight"].T + p["q.bias"]
        heads = []
        for h in range(0, c, head_dim):
            own = slice(h, h + head_dim)
            heads.append(torch.softmax(q[:, own] @ k[:, own].T / head_dim**0.5, dim=1) @ v[:, own])
        y = torch.cat(heads, dim=1) @ p["proj.weight"].T + p["proj.bias"]
        done.append(image + y.T.reshape(image.shape))
    return torch.stack(done)


@pytest.mark.parametrize("head_dim", [4, 8, 24])
@pytest.mark.parametrize("masked", [False, True])
def test_against_plain_torch(awake, head_dim: int, masked: bool) -> None:
    block = awake(CrossAttentionBlock(24, 10, head_dim, groups=6)).double()
    x, context = torch.randn(3, 24, 5, 3).double().requires_grad_(), torch.randn(3, 7, 10).double().requires_grad_()
    mask = torch.arange(7) < torch.tensor([7, 4, 0])[:, None] if masked else torch.ones(3, 7, dtype=torch.bool)
    got = block(x, context, mask if masked else None)
    want = plain_cross_attention(block, x, context, mask, groups=6, head_dim=head_dim)
    assert_close(got, want)
    inputs = [x, context, *block.parameters()]
    probe = torch.randn_like(got)
    assert_close(torch.autograd.grad((got * probe).sum(), inputs), torch.autograd.grad((want * probe).sum(), inputs))


def test_starts_as_the_identity_and_keeps_the_memory_format() -> None:
    x = torch.randn(2, 32, 5, 4).to(memory_format=torch.channels_last)
    y = CrossAttentionBlock(32, 6)(x, torch.randn(2, 3, 6))
    assert_close(y, x)
    assert y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("context", "mask", "error", "match"),
    [
        (torch.zeros(2, 3, 5), None, ValueError, r"context must have shape \(2, S, 6\) .* got \(2, 3, 5\)"),
        (torch.zeros(1, 3, 6), None, ValueError, r"context must have shape \(2, S, 6\) .* got \(1, 3, 6\)"),
        (torch.zeros(2, 6), None, ValueError, r"context must have shape .* got \(2, 6\)"),
        (torch.zeros(2, 0, 6), None, ValueError, "S at least 1"),
        (torch.zeros(2, 3, 6), torch.ones(2, 3), TypeError, "mask must be a bool tensor, .* got torch.float32"),
        (torch.zeros(2, 3, 6), torch.ones(2, 4) > 0, ValueError, r"mask must have shape \(2, 3\) = \[N, S\], got \(2, 4\)"),
    ],
)
def test_errors_name_the_argument(context: torch.Tensor, mask: torch.Tensor | None, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        CrossAttentionBlock(8, 6)(torch.zeros(2, 8, 2, 2), context, mask)


def test_constructor_errors() -> None:
    with pytest.raises(ValueError, match="context_dim must be at least 1, got 0"):
        CrossAttentionBlock(8, 0)
    with pytest.raises(ValueError, match="head_dim must be a divisor of the 8 channels, got 3"):
        CrossAttentionBlock(8, 6, head_dim=3)
