import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from fastdiff.nn import AttentionBlock, DownBlock, Downsample, TimeResidualBlock, UpBlock, Upsample


@pytest.mark.parametrize(("size", "half"), [((28, 28), (14, 14)), ((7, 9), (4, 5)), ((1, 1), (1, 1))])
def test_downsample_halves_and_upsample_returns(size: tuple[int, int], half: tuple[int, int]) -> None:
    down, up = Downsample(3), Upsample(3)
    x = torch.randn(2, 3, *size)
    y = down(x)
    assert y.shape[2:] == half
    assert_close(y, F.conv2d(F.pad(x, (1, 1, 1, 1)), down.weight, down.bias, stride=2))
    assert up(y, size=size).shape == x.shape
    doubled = y.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert_close(up(y), F.conv2d(doubled, up.weight, up.bias, padding=1))


def test_down_block_keeps_the_size() -> None:
    assert DownBlock(32, 64, 256)(torch.randn(2, 32, 14, 13), torch.randn(2, 256)).shape == (2, 64, 14, 13)


def test_up_block_upsamples_concatenates_and_convolves(awake) -> None:
    block = awake(UpBlock(96, 32, 16, conditioning="add", groups=8))
    x, skip, emb = torch.randn(2, 64, 7, 7), torch.randn(2, 32, 14, 14), torch.randn(2, 16)
    joined = torch.cat((x.repeat_interleave(2, 2).repeat_interleave(2, 3), skip), 1)
    assert_close(block(x, skip, emb), block.residual(joined, emb))
    assert block(x, torch.randn(2, 32, 13, 15), emb).shape == (2, 32, 13, 15)
    with pytest.raises(ValueError, match="x and skip must have 96 channels together, got 64 and 31"):
        block(x, skip[:, :31], emb)


def inputs(block: nn.Module, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, ...]:
    x, emb = torch.randn(2, 8, 5, 7, dtype=dtype), torch.randn(2, 6, dtype=dtype)
    match block:
        case UpBlock():
            return x, torch.randn(2, 8, 9, 13, dtype=dtype), emb
        case TimeResidualBlock():
            return x, emb
    return (x,)


BLOCKS = [
    lambda: TimeResidualBlock(8, 12, 6),
    lambda: TimeResidualBlock(8, 8, 6, "scale", groups=4),
    lambda: TimeResidualBlock(8, 8, 6, "add", norm="batch"),
    lambda: AttentionBlock(8, head_dim=4),
    lambda: UpBlock(16, 8, 6),
]


@pytest.fixture(params=BLOCKS, ids=["residual", "residual scale", "residual batch", "attention", "up"])
def block(request, awake) -> nn.Module:
    return awake(request.param())


@pytest.mark.parametrize("training", [True, False])
def test_blocks_compile_without_a_break(block: nn.Module, training: bool) -> None:
    torch._dynamo.reset()
    block.train(training)
    args = inputs(block)
    compiled = torch.compile(block, backend="aot_eager", fullgraph=True)
    with torch.set_grad_enabled(training):
        got, want = compiled(*args), block(*args)
    assert_close(got, want)
    if training:
        parameters = list(block.parameters())
        got_grads = torch.autograd.grad(got.square().mean(), parameters)
        assert_close(got_grads, torch.autograd.grad(want.square().mean(), parameters))


def test_blocks_keep_channels_last(block: nn.Module) -> None:
    args = inputs(block)
    want = block(*args)
    last = [a.contiguous(memory_format=torch.channels_last) if a.dim() == 4 else a for a in args]
    got = block.to(memory_format=torch.channels_last)(*last)
    assert got.is_contiguous(memory_format=torch.channels_last)
    assert_close(got, want)


def test_blocks_under_autocast_and_in_bf16(block: nn.Module) -> None:
    block.eval()
    args = inputs(block)
    want = block(*args)
    with torch.autocast("cpu", torch.bfloat16):
        got = block(*args)
    got.float().square().mean().backward()
    assert all(p.grad is not None and p.grad.dtype is torch.float32 for p in block.parameters())
    assert_close(got.float(), want, atol=0.15, rtol=0.05)
    half = block.bfloat16()(*(a.bfloat16() for a in args))
    assert half.dtype is torch.bfloat16
    assert_close(half.float(), want, atol=0.25, rtol=0.05)
