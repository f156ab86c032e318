import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from fastdiff.nn import TimeResidualBlock

CONDITIONINGS = ["scale_shift", "scale", "add"]


class PlainBlock(nn.Module):
    """The block in torch.nn alone, with the same parameter names."""

    def __init__(self, inputs: int, outputs: int, dim: int, conditioning: str, norm: str, groups: int) -> None:
        super().__init__()
        self.conditioning = conditioning

        def make(channels: int) -> nn.Module:
            if norm == "batch":
                return nn.BatchNorm2d(channels)
            return nn.GroupNorm(channels if norm == "instance" else groups, channels)

        self.norm1, self.norm2 = make(inputs), make(outputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.time_proj = nn.Linear(dim, outputs * (2 if conditioning == "scale_shift" else 1))
        self.shortcut = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: torch.Tensor, emb: torch.Tensor) -> torch.Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        c = self.time_proj(F.silu(emb))[:, :, None, None]
        if self.conditioning == "add":
            h = self.norm2(h + c)
        elif self.conditioning == "scale":
            h = self.norm2(h * c)
        else:
            scale, shift = c.chunk(2, 1)
            h = self.norm2(h) * (1 + scale) + shift
        return self.shortcut(x) + self.conv2(F.silu(h))


@pytest.mark.filterwarnings("ignore:conditioning=")
@pytest.mark.parametrize("conditioning", CONDITIONINGS)
@pytest.mark.parametrize("norm", ["group", "instance", "batch"])
@pytest.mark.parametrize("outputs", [8, 12])
def test_block_against_plain_torch(awake, conditioning: str, norm: str, outputs: int) -> None:
    ours = awake(TimeResidualBlock(8, outputs, 10, conditioning, norm, groups=4)).double()
    theirs = PlainBlock(8, outputs, 10, conditioning, norm, groups=4).double()
    theirs.load_state_dict(ours.state_dict())

    x, emb = torch.randn(3, 8, 5, 7).double().requires_grad_(), torch.randn(3, 10).double().requires_grad_()
    got, want = ours(x, emb), theirs(x, emb)
    assert_close(got, want)
    probe = torch.randn_like(got)
    got_grads = torch.autograd.grad((got * probe).sum(), [x, emb, *(p for _, p in sorted(ours.named_parameters()))])
    want_grads = torch.autograd.grad((want * probe).sum(), [x, emb, *(p for _, p in sorted(theirs.named_parameters()))])
    assert_close(got_grads, want_grads)
    assert_close(ours.state_dict(), theirs.state_dict())  # the running statistics of batch norm too


@pytest.mark.parametrize("conditioning", CONDITIONINGS)
def test_block_starts_as_its_shortcut(conditioning: str) -> None:
    x, emb = torch.randn(2, 64, 4, 4), torch.randn(2, 10)
    assert_close(TimeResidualBlock(64, 64, 10, conditioning)(x, emb), x)
    block = TimeResidualBlock(64, 128, 10, conditioning)
    assert_close(block(x, emb), block.shortcut(x))


def test_scale_starts_at_one() -> None:
    block = TimeResidualBlock(64, 64, 10, "scale")
    assert_close(block.time_proj(torch.randn(2, 10)), torch.ones(2, 64))


@pytest.mark.parametrize("conditioning", CONDITIONINGS)
def test_conditioning_changes_the_output_and_has_a_gradient(awake, conditioning: str) -> None:
    block = awake(TimeResidualBlock(64, 64, 10, conditioning))
    x, emb = torch.randn(2, 64, 5, 5), torch.randn(2, 10, requires_grad=True)
    y = block(x, emb)
    assert (y - block(x, emb + 1)).abs().max() > 0.01
    (grad,) = torch.autograd.grad(y.square().sum(), emb)
    assert grad.abs().min() > 0


@pytest.mark.parametrize(("norm", "groups"), [("instance", None), ("group", 16)])
@pytest.mark.parametrize("conditioning", ["scale", "add"])
def test_conditioning_that_the_norm_removes_is_warned_of(norm: str, groups: int | None, conditioning: str) -> None:
    with pytest.warns(UserWarning, match="cancels in a norm with one channel per group"):
        TimeResidualBlock(16, 16, 10, conditioning, norm, groups)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        TimeResidualBlock(16, 16, 10, "scale_shift", norm, groups)
        TimeResidualBlock(16, 16, 10, conditioning, "group", groups=8)
        TimeResidualBlock(16, 16, 10, conditioning, "batch")


def test_eps_and_dropout_are_used(awake) -> None:
    block = awake(TimeResidualBlock(8, 8, 4, eps=0.25, dropout=0.5))
    assert block.norm1.eps == block.norm2.eps == 0.25
    x, emb = torch.randn(2, 8, 4, 4), torch.randn(2, 4)
    assert not torch.equal(block(x, emb), block(x, emb))
    block.eval()
    assert torch.equal(block(x, emb), block(x, emb))


def test_block_names_what_is_wrong() -> None:
    with pytest.raises(ValueError, match="conditioning must be one of scale_shift, scale, add"):
        TimeResidualBlock(8, 8, 4, conditioning="film")
    with pytest.raises(ValueError, match="norm must be one of"):
        TimeResidualBlock(8, 8, 4, norm="layer")
    with pytest.raises(ValueError, match="groups must be a divisor"):
        TimeResidualBlock(8, 8, 4, groups=3)
    block = TimeResidualBlock(8, 8, 4)
    for emb in (torch.randn(2, 5), torch.randn(1, 4), torch.randn(4)):
        with pytest.raises(ValueError, match=r"emb must have shape \(2, 4\)"):
            block(torch.randn(2, 8, 4, 4), emb)
