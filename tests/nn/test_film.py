import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from fastdiff.nn import FiLM


def test_film_starts_as_the_identity() -> None:
    x = torch.randn(2, 6, 4, 4)
    assert_close(FiLM(10, 6)(x, torch.randn(2, 10)), x)


@pytest.mark.parametrize("shape", [(2, 6, 9), (2, 6, 4, 5), (2, 6, 3, 4, 5)])
def test_film_against_plain_torch(awake, shape: tuple[int, ...]) -> None:
    layer = awake(FiLM(10, 6, act="silu")).double()  # so that only the formula differs, not the order of rounding
    x, emb = (torch.randn(s, dtype=torch.float64, requires_grad=True) for s in (shape, (2, 10)))
    c = F.linear(emb, layer.proj.weight, layer.proj.bias).view(2, 12, *[1] * (len(shape) - 2))
    want = F.silu(x * (1 + c[:, :6]) + c[:, 6:])
    got = layer(x, emb)
    assert_close(got, want)
    inputs = [x, emb, *layer.parameters()]
    assert_close(torch.autograd.grad(got.square().sum(), inputs), torch.autograd.grad(want.square().sum(), inputs))


def test_film_under_autocast_keeps_the_dtype_of_x(awake) -> None:
    layer, x = awake(FiLM(10, 6)), torch.randn(2, 6, 4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x, torch.randn(2, 10)).dtype is torch.float32
        assert layer(x.bfloat16(), torch.randn(2, 10)).dtype is torch.bfloat16


def test_film_refuses_an_unknown_activation() -> None:
    with pytest.raises(ValueError, match="act must be one of"):
        FiLM(10, 6, act="swish")
