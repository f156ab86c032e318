"""group_norm_silu through its public function: values by hand, absent arguments, large means, instruction sets, errors."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from oracle import DTYPES, check_at_level, cpu_level, needs_kernel
from torch.nn import functional as F

from fastdiff import ops
from fastdiff.ops import group_norm_silu
from fastdiff.ops._library import CPU_LEVELS

X, W, S = torch.randn(2, 6, 4, 5), torch.randn(6), torch.randn(2, 6)
FORWARD, BACKWARD = ops.REGISTRY["group_norm_silu"], ops.REGISTRY["group_norm_silu_backward"]
LAYOUTS = pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["nchw", "last"])
compiled_only = needs_kernel("group_norm_silu")


def test_it_is_the_formula() -> None:
    got = group_norm_silu(X, 3, W, -W, 1e-3, S, -S)
    normed = F.group_norm(X, 3, W, -W, 1e-3)
    torch.testing.assert_close(got, F.silu(normed * (1 + S[:, :, None, None]) - S[:, :, None, None]))
    torch.testing.assert_close(group_norm_silu(X, 2, act="none"), F.group_norm(X, 2))


@LAYOUTS
@pytest.mark.parametrize("present", range(16))
def test_every_combination_of_arguments(present: int, memory_format: torch.memory_format) -> None:
    """Values and gradients against torch's own operators, in double."""
    x = X.double().contiguous(memory_format=memory_format).requires_grad_()
    values = (W.double(), -W.double(), S.double(), -S.double())
    weight, bias, scale, shift = (v.requires_grad_() if present >> i & 1 else None for i, v in enumerate(values))
    got = group_norm_silu(x, 2, weight, bias, 1e-5, scale, shift)
    z = F.group_norm(x, 2)  # torch's own backward fails with a bias and no weight
    z = z if weight is None else z * weight[:, None, None]
    z = z if bias is None else z + bias[:, None, None]
    z = z if scale is None else z * (1 + scale[:, :, None, None])
    expected = F.silu(z if shift is None else z + shift[:, :, None, None])
    torch.testing.assert_close(got, expected)
    leaves = [v for v in (x, weight, bias, scale, shift) if v is not None]
    torch.testing.assert_close(torch.autograd.grad(got.sin().sum(), leaves), torch.autograd.grad(expected.sin().sum(), leaves))


def test_gradients_of_absent_arguments_are_empty() -> None:
    _, mean, rstd = FORWARD(X, 2, W, None, 1e-5, None, S, "silu")
    gradients = BACKWARD(X, X, mean, rstd, 2, W, None, None, S, "silu")
    assert [tuple(g.shape) for g in gradients] == [(2, 6, 4, 5), (6,), (0,), (0,), (2, 6)]


@compiled_only
@LAYOUTS
@pytest.mark.parametrize("offset", [1e4, -1e5])
def test_a_large_mean_costs_no_accuracy_of_the_variance(offset: float, memory_format: torch.memory_format) -> None:
    x = (torch.randn(2, 32, 40, 40) + offset).contiguous(memory_format=memory_format)
    _, mean, rstd = FORWARD(x, 8, None, None, 1e-5, None, None, "none")
    _, true_mean, true_rstd = FORWARD.reference(x.double(), 8, None, None, 1e-5, None, None, "none")
    assert (mean - true_mean).abs().max() <= abs(offset) * 2**-24
    assert ((rstd - true_rstd) / true_rstd).abs().max() < 1e-6


@compiled_only
@LAYOUTS
def test_an_outlier_where_sums_are_shifted_does_no_harm(memory_format: torch.memory_format) -> None:
    """The first value of each group is a thousand deviations away: a poor shift for all after it."""
    x = torch.randn(1, 16, 64, 64)
    x[:, :, 0, 0] = 1e3
    x = x.contiguous(memory_format=memory_format)
    rstd = FORWARD(x, 4, None, None, 1e-5, None, None, "none")[2]
    truth = FORWARD.reference(x.double(), 4, None, None, 1e-5, None, None, "none")[2]
    assert ((rstd - truth) / truth).abs().max() < 2e-6


@LAYOUTS
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_an_image_does_not_depend_on_its_batch_or_on_threads(threads: int, memory_format: torch.memory_format) -> None:
    x = torch.randn(9, 24, 57, 61).contiguous(memory_format=memory_format)
    weight, before = torch.randn(24), torch.get_num_threads()
    whole = group_norm_silu(x, 6, weight, weight)
    if not FORWARD.compiled("CPU"):
        return  # plain torch promises no bits across thread counts
    try:
        torch.set_num_threads(threads)
        for i in (0, 8):
            assert torch.equal(group_norm_silu(x[i : i + 1], 6, weight, weight), whole[i : i + 1])
    finally:
        torch.set_num_threads(before)


@compiled_only
@pytest.mark.parametrize("level", CPU_LEVELS[:3])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_instruction_set(level: str, dtype: torch.dtype) -> None:
    for op in (FORWARD, BACKWARD):
        check_at_level(level, op, dtype)


@compiled_only
@pytest.mark.parametrize("level", CPU_LEVELS[:3])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["nchw", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_is_written_past_the_caches_is_the_same(
    level: str, memory_format: torch.memory_format, dtype: torch.dtype
) -> None:
    """The same bits, from 16 MB on; an image alone is smaller."""
    images = (1 << 24) // (32 * 64 * 64 * dtype.itemsize)
    x = torch.randn(images, 32, 64, 64).to(dtype).contiguous(memory_format=memory_format)
    assert x.nbytes == 1 << 24
    with cpu_level(level):
        for i in (0, images - 1):
            together, alone = (
                x.clone(memory_format=torch.preserve_format).requires_grad_(),
                x[i : i + 1].clone().requires_grad_(),
            )
            y, one = group_norm_silu(together, 8), group_norm_silu(alone, 8)
            assert torch.equal(y[i], one[0])
            y.backward(x)
            one.backward(x[i : i + 1])
            assert torch.equal(together.grad[i], alone.grad[0])


def test_a_training_step_keeps_x_and_little_else() -> None:
    """At most 60 % of what torch's own operators keep for the backward pass; x is what the convolution before it wrote."""

    def kept(call: Callable[[], torch.Tensor]) -> tuple[int, torch.Tensor]:
        storages: dict[int, int] = {}

        def keep(t: torch.Tensor) -> torch.Tensor:
            storages[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            y = call()
        return sum(storages.values()), y  # y keeps the graph, and so each storage, until all are counted

    x, weight = torch.randn(8, 32, 16, 16, requires_grad=True), torch.randn(32, requires_grad=True)
    scale, shift = torch.randn(8, 64, requires_grad=True).chunk(2, dim=1)

    def plain() -> torch.Tensor:
        z = F.group_norm(x, 8, weight, weight)
        return F.silu(z * (1 + scale[:, :, None, None]) + shift[:, :, None, None])

    ours, _ = kept(lambda: group_norm_silu(x, 8, weight, weight, 1e-5, scale, shift))
    torchs, _ = kept(plain)
    assert x.nbytes <= ours <= 0.6 * torchs


@pytest.mark.parametrize("act", ["none", "silu", "relu", "leaky_relu", "gelu"])
def test_activations_at_extremes(act: str) -> None:
    """One element per group is normalised to 0, so the bias alone is what the activation sees."""
    bias = torch.tensor([-1e38, -1e4, -104.0, -88.5, -20.0, -1e-3, 0.0, 1e-30, 1.0, 20.0, 88.5, 104.0, 1e38])
    x = torch.zeros(1, len(bias), 1, 1, requires_grad=True)
    leaf = bias.clone().requires_grad_()
    y = group_norm_silu(x, len(bias), None, leaf, act=act)
    reference = bias.double().requires_grad_()
    truth = FORWARD.reference(x.double(), len(bias), None, reference, 1e-5, None, None, act)[0]
    torch.testing.assert_close(y.double(), truth, rtol=3e-7, atol=1e-35)
    (got,), (expected,) = torch.autograd.grad(y.sum(), leaf), torch.autograd.grad(truth.sum(), reference)
    torch.testing.assert_close(got.double(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"x": torch.zeros(2, 6)}, ValueError, r"x must have 3 to 5 dimensions .*got shape \(2, 6\)"),
        ({"x": torch.zeros(2, 6, 0)}, ValueError, "at least one element per group"),
        ({"groups": 4}, ValueError, "groups must be a divisor of x's 6 channels, got 4"),
        ({"groups": 0}, ValueError, "groups must be a divisor"),
        ({"weight": torch.zeros(5)}, ValueError, r"weight must have shape \(6,\), got \(5,\)"),
        ({"bias": W.double()}, TypeError, "bias must be torch.float32, got torch.float64"),
        ({"scale": torch.zeros(6)}, ValueError, r"scale must have shape \(2, 6\), got \(6,\)"),
        ({"shift": S.half()}, TypeError, "shift must be torch.float32"),
        ({"eps": 0.0}, ValueError, "eps must be above 0"),
        ({"act": "swish"}, ValueError, "act must be one of"),
    ],
)
def test_wrong_arguments_are_named(kwargs: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        group_norm_silu(**({"x": X, "groups": 3} | kwargs))


@compiled_only
def test_the_kernel_checks_memory_safety_again() -> None:
    """Calls that pass by the public function must not read out of bounds."""
    forward, backward = FORWARD.overload, BACKWARD.overload
    tail = (1e-5, None, None, "silu")
    with pytest.raises(RuntimeError, match="groups must be a divisor"):
        forward(X, 4, None, None, *tail)
    with pytest.raises(RuntimeError, match="at least one element"):
        forward(X[:, :, :0], 2, None, None, *tail)
    with pytest.raises(RuntimeError, match=r"weight must be \[C\]"):
        forward(X, 2, W[:3], None, *tail)
    with pytest.raises(RuntimeError, match=r"scale must be \[N, C\]"):
        forward(X, 2, None, None, 1e-5, S[:1], None, "silu")
    with pytest.raises(RuntimeError, match="bias must be float32 or x's dtype"):
        forward(X, 2, None, W.double(), *tail)
    with pytest.raises(RuntimeError, match="x must be"):
        forward(X.to(torch.int32), 2, None, None, *tail)
    _, mean, rstd = forward(X, 2, None, None, *tail)
    with pytest.raises(RuntimeError, match="grad must have the images' shape and dtype"):
        backward(X[:1], X, mean, rstd, 2, None, None, None, None, "silu")
    with pytest.raises(RuntimeError, match="mean and rstd must be"):
        backward(X, X, mean[:1], rstd, 2, None, None, None, None, "silu")
