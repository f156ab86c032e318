import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from fastdiff.nn import AttentionBlock


def plain_attention(block: AttentionBlock, x: torch.Tensor, groups: int, head_dim: int) -> torch.Tensor:
    n, c, h, w = x.shape
    p = dict(block.named_parameters())
    u = F.group_norm(x, groups, p["norm.weight"], p["norm.bias"]).reshape(n, c, h * w)
    qkv = torch.einsum("oc,ncp->nop", p["qkv.weight"], u) + p["qkv.bias"][:, None]
    q, k, v = (part.reshape(n, c // head_dim, head_dim, h * w) for part in qkv.split(c, dim=1))
    weights = torch.softmax(torch.einsum("nadp,nadq->napq", q, k) / head_dim**0.5, dim=-1)
    y = torch.einsum("napq,nadq->nadp", weights, v).reshape(n, c, h * w)
    y = torch.einsum("oc,ncp->nop", p["proj.weight"], y) + p["proj.bias"][:, None]
    return x + y.reshape(x.shape)


@pytest.mark.parametrize("size", [(4, 4), (5, 3), (1, 1)])
@pytest.mark.parametrize("head_dim", [4, 8, 24])
def test_attention_against_plain_torch(awake, size: tuple[int, int], head_dim: int) -> None:
    block = awake(AttentionBlock(24, head_dim, groups=6)).double()
    x = torch.randn(2, 24, *size).double().requires_grad_()
    got, want = block(x), plain_attention(block, x, groups=6, head_dim=head_dim)
    assert_close(got, want)
    inputs = [x, *block.parameters()]
    probe = torch.randn_like(got)
    assert_close(torch.autograd.grad((got * probe).sum(), inputs), torch.autograd.grad((want * probe).sum(), inputs))


def test_attention_starts_as_the_identity() -> None:
    x = torch.randn(2, 32, 5, 4)
    assert_close(AttentionBlock(32)(x), x)


@pytest.mark.parametrize(("channels", "head_dim"), [(8, 8), (64, 64), (96, 48), (256, 64), (67, 1)])
def test_default_head_dim(channels: int, head_dim: int) -> None:
    assert AttentionBlock(channels).head_dim == head_dim


@pytest.mark.parametrize("head_dim", [0, 5])
def test_attention_names_what_is_wrong(head_dim: int) -> None:
    with pytest.raises(ValueError, match="head_dim must be a divisor of the 24 channels"):
        AttentionBlock(24, head_dim)
