import math

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from fastdiff.nn import LabelEmbedding, TimeEmbedding, TimeMLP


def test_time_embedding_is_sines_then_cosines() -> None:
    t = torch.tensor([0, 1, 500, 999])
    angle = t.double()[:, None] * torch.exp(-math.log(1e4) * torch.arange(128, dtype=torch.float64) / 128)
    got = TimeEmbedding(256)(t)
    assert got.dtype is torch.float32
    assert_close(got, torch.cat([angle.sin(), angle.cos()], 1).float())


def test_time_embedding_knows_its_alias() -> None:
    t = torch.tensor([3, 7])
    assert_close(TimeEmbedding(embedding_dim=16)(t), TimeEmbedding(16)(t))
    assert list(TimeEmbedding(16).state_dict()) == []
    for arguments in ({}, {"embed_dim": 8, "embedding_dim": 8}):
        with pytest.raises(TypeError, match="embed_dim or its alias embedding_dim"):
            TimeEmbedding(**arguments)


@pytest.mark.parametrize("dim", [0, 7])
def test_time_embedding_needs_an_even_width(dim: int) -> None:
    with pytest.raises(ValueError, match="embed_dim must be even"):
        TimeEmbedding(dim)


def test_time_mlp_against_plain_torch() -> None:
    mlp, t = TimeMLP(32), torch.tensor([0, 250])
    h = F.silu(F.linear(TimeEmbedding(32)(t), mlp.linear1.weight, mlp.linear1.bias))
    assert_close(mlp(t), F.linear(h, mlp.linear2.weight, mlp.linear2.bias))
    assert mlp.bfloat16()(t).dtype is torch.bfloat16


def test_label_embedding_has_a_null_class() -> None:
    layer = LabelEmbedding(10, 4)
    assert layer.null_class == 10
    assert layer(torch.tensor([0, 9, 10])).shape == (3, 4)
    assert_close(layer(None), layer(torch.tensor([10])))
    assert_close(layer(torch.tensor([1, 2], dtype=torch.int32)), layer(torch.tensor([1, 2])))
    layer(None).sum().backward()
    assert layer.table.weight.grad.abs().sum(1).nonzero().tolist() == [[10]]


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        (torch.tensor([0, 11]), ValueError, r"labels must be in 0\.\.9, or 10 for no label, got 11"),
        (torch.tensor([-1]), ValueError, "got -1"),
        (torch.tensor([[1]]), ValueError, r"labels must have shape \[N\]"),
        (torch.tensor([1.0]), TypeError, "labels must be an int64 or int32 tensor, got torch.float32"),
        ([1, 2], TypeError, "got list"),
    ],
)
def test_label_embedding_names_what_is_wrong(labels, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        LabelEmbedding(10, 4)(labels)


def test_label_embedding_needs_a_class() -> None:
    with pytest.raises(ValueError, match="num_classes"):
        LabelEmbedding(0, 4)
