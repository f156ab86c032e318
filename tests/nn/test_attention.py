import copy

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from fastdiff import ops
from fastdiff.nn import AttentionBlock
from fastdiff.ops._oracle import error_and_bound
from fastdiff.ops.attention import PRODUCTS_HEADS, PRODUCTS_LOGITS


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


@pytest.mark.parametrize(("head_dim", "ours"), [(4, False), (8, True), (256, True), (264, False)])
def test_head_sizes_that_the_op_does_not_take_are_torchs_own(
    awake, monkeypatch: pytest.MonkeyPatch, head_dim: int, ours: bool
) -> None:
    calls = []
    own = ops.attention
    monkeypatch.setattr(ops, "attention", lambda *a: calls.append(a) or own(*a))
    block, x = awake(AttentionBlock(head_dim, head_dim, groups=2)), torch.randn(2, head_dim, 3, 2)
    assert_close(block(x), plain_attention(block, x, groups=2, head_dim=head_dim), rtol=1e-4, atol=1e-4)
    assert len(calls) == ours


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [(4, 4), (5, 3), (16, 16)])
def test_attention_of_many_short_sequences_is_the_fused_one(awake, size: tuple[int, int], dtype: torch.dtype) -> None:
    """Eight images of three heads take another way on the CPU than one image does: same values, same gradients."""
    block = awake(AttentionBlock(24, 8, groups=6)).to(dtype)
    x = torch.randn(8, 24, *size).to(dtype)
    assert 8 * 3 >= PRODUCTS_HEADS > 3
    assert (size[0] * size[1]) ** 2 <= PRODUCTS_LOGITS

    def values_and_gradients(of: AttentionBlock, images: torch.Tensor) -> list[torch.Tensor]:
        images = images.clone().requires_grad_()
        inputs = [images, *of.parameters()]
        y = of(images)
        return [y.detach(), *torch.autograd.grad((y * y.detach()).sum(), inputs)]

    def one_by_one(of: AttentionBlock, images: torch.Tensor) -> list[torch.Tensor]:
        y, dx, *rest = zip(*(values_and_gradients(of, image[None]) for image in images), strict=True)
        return [torch.cat(y), torch.cat(dx), *(sum(g) for g in rest)]

    truth = one_by_one(copy.deepcopy(block).double(), x.double())
    got, fused = values_and_gradients(block, x), one_by_one(block, x)
    for g, f, t in zip(got, fused, truth, strict=True):
        error, bound = error_and_bound(g, f, t, 1e-5)
        assert error <= bound
