"""Layers that torch has too: the same outputs, gradients, state_dict, repr and errors, whatever the arguments."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

import fastdiff.nn as ours
from fastdiff.nn.fused import on_maps

drawn = settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
pairs = st.integers(1, 3) | st.tuples(st.integers(1, 3), st.integers(1, 3))


@st.composite
def convolutions(draw: st.DrawFn) -> dict[str, Any]:
    groups = draw(st.integers(1, 3))
    padding = draw(st.integers(0, 2) | st.tuples(st.integers(0, 2), st.integers(0, 2)) | st.sampled_from(["same", "valid"]))
    return {
        "in_channels": groups * draw(st.integers(1, 3)),
        "out_channels": groups * draw(st.integers(1, 3)),
        "kernel_size": draw(st.integers(1, 4) | st.tuples(st.integers(1, 4), st.integers(1, 4))),
        "stride": draw(st.just(1) if padding == "same" else pairs),
        "padding": padding,
        "dilation": draw(st.sampled_from([1, 1, 2, (1, 2)])),
        "groups": groups,
        "bias": draw(st.booleans()),
        "padding_mode": draw(st.sampled_from(["zeros", "zeros", "zeros", "reflect", "replicate", "circular"])),
    }


class Layer(nn.Module):
    """A layer by itself, where Maps may run."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    @on_maps
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


def results(layer: nn.Module, x: torch.Tensor) -> Any:
    """Output and gradients, or the error."""
    x = x.clone().requires_grad_()
    try:
        y = layer(x)
    except (RuntimeError, ValueError) as error:
        return type(error), str(error)
    weights = torch.linspace(0.5, 1.5, y.numel(), dtype=y.dtype).view(y.shape)
    return y, torch.autograd.grad((y * weights).sum(), [x, *layer.parameters()])


def check(mine: nn.Module, theirs: nn.Module, x: torch.Tensor) -> None:
    assert repr(mine) == repr(theirs)
    assert list(mine.state_dict()) == list(theirs.state_dict())
    mine.load_state_dict(theirs.state_dict())
    own, want = results(mine, x), results(theirs, x)
    if isinstance(want[1], str):
        assert own == want
    else:
        assert_close(own, want)
    assert_close(mine.state_dict(), theirs.state_dict())
    check_without_gradients(theirs, x)


def check_without_gradients(theirs: nn.Module, x: torch.Tensor) -> None:
    """In eval mode, where the layer may run fused."""
    theirs.eval()
    with torch.no_grad():
        try:
            want = theirs(x)
        except (RuntimeError, ValueError) as error:
            with pytest.raises(type(error)):
                Layer(theirs).eval()(x)
            return
        got = Layer(theirs).eval()(x)
    assert_close(got, want)
    if 1 not in (*x.shape, *want.shape):  # else both formats are right
        assert got.stride() == want.stride()


@drawn
@given(convolutions(), st.tuples(st.integers(1, 9), st.integers(1, 9)))
def test_convolution(arguments: dict[str, Any], size: tuple[int, int]) -> None:
    x = torch.randn(2, arguments["in_channels"], *size)
    check(ours.Conv2d(**arguments), nn.Conv2d(**arguments), x)


@pytest.mark.parametrize(
    "wrong", [{"groups": 2}, {"padding": "some"}, {"padding": "same", "stride": 2}, {"padding_mode": "no"}]
)
def test_a_convolutions_errors_are_torchs(wrong: dict[str, Any]) -> None:
    messages = []
    for kind in (ours.Conv2d, nn.Conv2d):
        with pytest.raises(ValueError) as error:
            kind(**{"in_channels": 3, "out_channels": 4, "kernel_size": 3} | wrong)
        messages.append(str(error.value))
    assert messages[0] == messages[1]


def test_how_a_convolution_starts() -> None:
    he, torchs = ours.Conv2d(16, 256, 3, groups=2), ours.Conv2d(16, 256, 3, init="torch")
    assert abs(float(he.weight.detach().std()) / (2 / 72) ** 0.5 - 1) < 0.03
    assert not he.bias.any()
    assert float(torchs.weight.detach().abs().max()) <= (1 / 144) ** 0.5
    assert torchs.bias.any()
    assert copy.deepcopy(torchs).init == "torch"
    with pytest.raises(ValueError, match="init must be one of he, torch, got 'glorot'"):
        ours.Conv2d(1, 1, 1, init="glorot")


def _each_window_has_a_pixel(x: torch.Tensor, kernel: Any, stride: Any, padding: int, dilation: int, *rest: bool) -> bool:
    """Of padding alone torch's max pool makes -inf, and its derivative writes outside of the image's memory (torch 2.13)."""
    try:
        y = nn.functional.max_pool2d(x, kernel, stride, padding, dilation, rest[1])
    except RuntimeError:  # which `check` compares
        return True
    return bool(y.isfinite().all())


@drawn
@given(st.data())
def test_pools(data: st.DataObject) -> None:
    x = torch.randn(2, 3, *data.draw(st.tuples(st.integers(1, 9), st.integers(1, 9)))) - 2
    if data.draw(st.booleans()):
        x = x.contiguous(memory_format=torch.channels_last)
    match data.draw(st.sampled_from(["max", "mean", "adaptive"])):
        case "adaptive":
            size = data.draw(st.integers(1, 4) | st.tuples(st.integers(1, 4), st.none() | st.integers(1, 4)))
            check(ours.AdaptiveAvgPool2d(size), nn.AdaptiveAvgPool2d(size), x)
        case kind:
            kernel, padding = data.draw(pairs), data.draw(st.integers(0, 1))
            stride, ceil = data.draw(st.none() | pairs), data.draw(st.booleans())
            if kind == "max":
                arguments = (kernel, stride, padding, data.draw(st.integers(1, 2)), False, ceil)
                assume(_each_window_has_a_pixel(x, *arguments))
                check(ours.MaxPool2d(*arguments), nn.MaxPool2d(*arguments), x)
            else:
                arguments = (kernel, stride, padding, ceil, data.draw(st.booleans()), data.draw(st.none() | st.integers(1, 5)))
                check(ours.AvgPool2d(*arguments), nn.AvgPool2d(*arguments), x)


@drawn
@given(
    st.sampled_from([None, 0.1, 0.7]),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.integers(1, 3),
    st.sampled_from([1e-5, 0.1]),
)
def test_batch_norm(momentum: float | None, affine: bool, tracks: bool, training: bool, channels: int, eps: float) -> None:
    mine, theirs = (kind(channels, eps, momentum, affine, tracks) for kind in (ours.BatchNorm2d, nn.BatchNorm2d))
    for p in theirs.parameters():
        nn.init.normal_(p)
    x = torch.randn(3, channels, 2, 3)
    theirs(x + 1)  # running statistics of its own
    check(mine.train(training), theirs.train(training), x)


@drawn
@given(st.integers(1, 3), st.integers(1, 3), st.booleans(), st.booleans())
def test_group_norm_without_gradients(groups: int, each: int, affine: bool, behind: bool) -> None:
    layer = ours.GroupNorm(groups, groups * each, affine=affine)
    for p in layer.parameters():
        nn.init.normal_(p)
    layer = nn.Sequential(nn.Conv2d(groups * each, groups * each, 3, padding=1), layer) if behind else layer
    check_without_gradients(layer, torch.randn(2, groups * each, 4, 5))


def test_dropout_and_layer_norm_are_torchs_own() -> None:
    for name in ("MaxPool2d", "AvgPool2d", "AdaptiveAvgPool2d", "BatchNorm2d", "Dropout2d", "LayerNorm"):
        assert getattr(ours, name) is getattr(nn, name)
    check_without_gradients(nn.Dropout2d(0.5), torch.randn(2, 3, 4, 4))
    check_without_gradients(nn.LayerNorm(4), torch.randn(2, 3, 4, 4))
