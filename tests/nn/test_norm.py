import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from fastdiff.nn import GroupNorm, GroupNormSiLU, default_groups
from fastdiff.nn.norm import BatchNormSiLU, norm_silu


@given(st.integers(1, 4096))
def test_default_groups_is_the_largest_divisor_up_to_32(channels: int) -> None:
    assert default_groups(channels) == max(g for g in range(1, 33) if channels % g == 0)


def test_default_groups_of_common_widths() -> None:
    assert [default_groups(c) for c in (1, 24, 32, 48, 64, 67, 96)] == [1, 24, 32, 24, 32, 1, 32]
    with pytest.raises(ValueError, match="channels"):
        default_groups(0)


@pytest.mark.parametrize("affine", [True, False])
def test_group_norm_is_torchs(affine: bool) -> None:
    ours, theirs = GroupNorm(4, 12, eps=1e-3, affine=affine), nn.GroupNorm(4, 12, eps=1e-3, affine=affine)
    assert repr(ours) == repr(theirs)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    if affine:
        nn.init.normal_(theirs.weight)
        nn.init.normal_(theirs.bias)
    ours.load_state_dict(theirs.state_dict())

    x = torch.randn(3, 12, 5, 7).double().requires_grad_()
    a, b = ours.double()(x), theirs.double()(x)
    assert_close(a, b)
    probe = torch.randn_like(a)
    got = torch.autograd.grad((a * probe).sum(), [x, *ours.parameters()])
    want = torch.autograd.grad((b * probe).sum(), [x, *theirs.parameters()])
    assert_close(got, want)


@pytest.mark.parametrize("shape", [(2, 6, 9), (2, 6, 4, 5), (2, 6, 3, 4, 5)])
def test_group_norm_takes_3_to_5_dimensions(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    assert_close(GroupNorm(3, 6)(x), F.group_norm(x, 3))


def test_group_norm_silu_modulates_before_the_activation() -> None:
    layer = GroupNormSiLU(2, 8)
    nn.init.normal_(layer.weight)
    x, scale, shift = torch.randn(3, 8, 5, 5), torch.randn(3, 8), torch.randn(3, 8)
    u = F.group_norm(x, 2, layer.weight, layer.bias)
    assert_close(layer(x), F.silu(u))
    assert_close(layer(x, scale, shift), F.silu(u * (1 + scale[:, :, None, None]) + shift[:, :, None, None]))
    assert list(layer.state_dict()) == ["weight", "bias"]
    assert repr(layer) == repr(nn.GroupNorm(2, 8)).replace("GroupNorm(", "GroupNormSiLU(")[:-1] + ", act=silu)"


def test_group_norm_silu_with_another_activation() -> None:
    x = torch.randn(2, 8, 3, 3)
    assert_close(GroupNormSiLU(4, 8, affine=False, act="gelu")(x), F.gelu(F.group_norm(x, 4)))
    with pytest.raises(ValueError, match="act must be one of"):
        GroupNormSiLU(4, 8, act="swish")


def test_batch_norm_silu_is_torchs_with_modulation() -> None:
    layer, theirs = BatchNormSiLU(6), nn.BatchNorm2d(6)
    x, scale, shift = torch.randn(4, 6, 3, 3), torch.randn(4, 6), torch.randn(4, 6)
    u = theirs(x)
    assert_close(layer(x, scale, shift), F.silu(u * (1 + scale[:, :, None, None]) + shift[:, :, None, None]))
    assert_close(layer.state_dict(), theirs.state_dict())
    assert_close(layer.eval()(x), F.silu(theirs.eval()(x)))


def test_norm_silu_names_what_is_wrong() -> None:
    with pytest.raises(ValueError, match="groups must be a divisor of the 12 channels"):
        norm_silu("group", 12, groups=5)
    with pytest.raises(ValueError, match="norm must be one of group, instance, batch, got 'layer'"):
        norm_silu("layer", 12)
