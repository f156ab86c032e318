"""Attention's Triton kernels in Triton's interpreter, which runs them on the CPU, against float64.

What the interpreter cannot show: memory races, speed, and what a compiler makes of them; see `test_triton_resources.py`.
"""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch.torch_version import TorchVersion

from fastdiff import ops
from fastdiff.ops._oracle import error_and_bound

if importlib.util.find_spec("triton") is None:
    pytest.skip("triton is not installed", allow_module_level=True)
if TorchVersion(version("triton")) < "3.7" and TorchVersion(version("numpy")) >= "2.4":
    pytest.skip("the interpreter of triton before 3.7 fails with numpy 2.4 and newer", allow_module_level=True)

KERNELS = "fastdiff.ops._attention_triton"
ROOM = sys.modules["fastdiff.ops.attention"]  # the module: the function has its name in the package
REFERENCE = ops.REGISTRY["attention"].reference
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Of the norm of the true result. In 16 bits p and ds are rounded before their products, as in any flash attention.
TOLERANCE = {torch.float32: 4e-6, torch.bfloat16: 6e-3, torch.float16: 1.5e-3}


def _widened(handle: Any, tl: ModuleType, handle_type: type) -> Any:
    """A bfloat16 operand, which the interpreter holds as its bits in uint16, as float32 values."""
    if handle.dtype.scalar != tl.bfloat16:
        return handle
    bits = handle.data.astype("uint32") << 16
    return handle_type(bits.view("float32"), tl.float32)


def _rounded(data: np.ndarray) -> np.ndarray:
    """float32 values as the bits of the nearest bfloat16, halfway to even, as a GPU converts."""
    bits = np.ascontiguousarray(data).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def _modules() -> list[str]:
    """The kernels and triton, as far as they are imported, without triton's compiled part: it cannot be loaded twice."""
    return [name for name in sys.modules if re.match(rf"(triton|{re.escape(KERNELS)})(?!\._C)(\.|$)", name)]


@contextmanager
def interpreted() -> Iterator[ModuleType]:
    """The kernels, made for the interpreter by a triton of their own: what runs them is settled where triton is imported.

    What was imported before, made for a GPU, is there again afterwards, and nothing of what was imported in between.
    """
    name = KERNELS.rpartition(".")[2]
    with pytest.MonkeyPatch.context() as patch:
        for module in _modules():
            patch.delitem(sys.modules, module)
        patch.delattr(ops, name, raising=False)
        patch.setenv("TRITON_INTERPRET", "1")
        import triton.language as tl
        from triton.runtime import interpreter

        plain_dot = interpreter.InterpreterBuilder.create_dot

        def dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
            a, b = (_widened(x, tl, interpreter.TensorHandle) for x in (a, b))
            return plain_dot(self, a, b, *rest)

        plain_cast = interpreter.InterpreterBuilder.cast_impl

        def cast(self: Any, source: Any, target: Any) -> Any:
            if (source.dtype.scalar, target.scalar) != (tl.float32, tl.bfloat16):
                return plain_cast(self, source, target)
            return interpreter.TensorHandle(_rounded(source.data), tl.bfloat16)

        patch.setattr(interpreter.InterpreterBuilder, "create_dot", dot)  # it would multiply the bits as integers
        patch.setattr(interpreter.InterpreterBuilder, "cast_impl", cast)  # it would drop the lower bits
        try:
            yield importlib.import_module(KERNELS)
        finally:
            for module in _modules():
                del sys.modules[module]
            vars(ops).pop(name, None)


@pytest.fixture(scope="module")
def kernels() -> Iterator[ModuleType]:
    with interpreted() as made:
        yield made


def test_the_kernels_for_a_gpu_are_there_again_afterwards() -> None:
    """Before the first test that takes the fixture: a process with a GPU goes on with kernels that run on it."""
    real = importlib.import_module(KERNELS)
    before = {name: sys.modules[name] for name in _modules()}
    with interpreted() as made:
        assert type(made.launch.forward_kernel).__name__ == "InterpretedFunction"
        assert made is not real
        assert sys.modules["triton"] is not before["triton"]
        assert ops._attention_triton is made
    assert {name: sys.modules[name] for name in _modules()} == before
    assert ops._attention_triton is real
    assert type(real.launch.forward_kernel).__name__ == "JITFunction"
    assert "TRITON_INTERPRET" not in os.environ
    foreign = made.launch.triton
    assert not [name for name, module in sys.modules.items() if any(value is foreign for value in vars(module).values())]


def drawn(queries: int, keys: int, d: int, dtype: torch.dtype, n: int = 1, h: int = 2) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(queries * keys + d)
    shapes = ((n, h, queries, d), (n, h, keys, d), (n, h, keys, d), (n, h, queries, d))
    return [torch.randn(s, generator=generator).to(dtype) for s in shapes]


def check(what: str, got: torch.Tensor, truth: torch.Tensor, dtype: torch.dtype, at_least: float = 1.0) -> None:
    """The error's norm beside the truth's; a truth that is zero is held against values of order `at_least`."""
    assert got.shape == truth.shape
    assert got.dtype is dtype
    truth = truth.detach()
    error = float((got.double() - truth).norm()) / max(float(truth.norm()), at_least * truth.numel() ** 0.5, 1e-300)
    assert error <= TOLERANCE[dtype], f"{what}: {error:.2e} is above {TOLERANCE[dtype]:.0e}"


def check_forward(kernels: ModuleType, args: tuple[Any, ...]) -> None:
    q, k, v, mask, scale = args
    wide = mask if mask is None or mask.dtype is torch.bool else mask.double()
    out, logsumexp = REFERENCE(q.double(), k.double(), v.double(), wide, scale)
    got_out, got_logsumexp = kernels.forward(*args)
    check("out", got_out, out, q.dtype, at_least=0.1)
    torch.testing.assert_close(got_logsumexp, logsumexp.float(), rtol=2e-6, atol=2e-6)


def a_mask(kind: str, queries: int, keys: int, n: int, h: int) -> torch.Tensor | None:
    generator = torch.Generator().manual_seed(3)
    chosen = torch.rand(n, h, queries, keys, generator=generator) < 0.5
    return {
        "none": None,
        "bool": chosen,
        "excluding": chosen & (torch.arange(queries)[:, None] % 3 != 0),  # queries 0, 3, 6, ... attend to nothing
        "late": torch.arange(keys).expand(1, 1, 1, keys) >= keys - 3,  # nothing in the first tiles of keys
        "additive": torch.randn(queries, keys, generator=generator).masked_fill(~chosen[0, 0], -torch.inf),
        "bias": torch.randn(h, 1, keys, generator=generator),
        "per image": torch.randn(n, 1, 1, keys, generator=generator),
    }[kind]


def masked(kind: str, dtype: torch.dtype) -> tuple[torch.Tensor, tuple[Any, ...]]:
    """A gradient and the arguments of a call with a mask. Its keys are more than one tile of them."""
    n, h = (2, 1) if kind == "per image" else (1, 2)
    *qkv, grad = drawn(20, 75, 16, dtype, n, h)
    mask = a_mask(kind, 20, 75, n, h)
    if mask.dtype is not torch.bool and kind != "bias":  # the bias stays float32
        mask = mask.to(dtype)
    return grad, (*qkv, mask, 0.25)


def with_gradients(run: Any, grad: torch.Tensor, qkv: tuple[torch.Tensor, ...], *rest: Any) -> list[torch.Tensor]:
    """The output, and the gradients of q, k and v."""
    leaves = [x.detach().requires_grad_() for x in qkv]
    out = run(*leaves, *rest)[0]
    return [out.detach(), *torch.autograd.grad(out, leaves, grad)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_sample_is_as_right_as_torchs_own(kernels: ModuleType, dtype: torch.dtype) -> None:
    """By the bound of all ops: twice torch's error, plus the floor."""
    for sample in ops.REGISTRY["attention"].small_samples(dtype, "cpu"):
        if sample.name == "no images":
            continue
        q, k, v, mask, scale = sample.args
        wide = mask if mask is None or mask.dtype is torch.bool else mask.double()
        grad = torch.randn(q.shape, generator=torch.Generator().manual_seed(1)).to(dtype)

        plain = with_gradients(ops.REGISTRY["attention"].plain, grad, (q, k, v), mask, scale)
        truth = with_gradients(REFERENCE, grad.double(), tuple(x.double() for x in (q, k, v)), wide, scale)
        out, logsumexp = kernels.forward(*sample.args)
        got = [out, *kernels.backward(grad, q, k, v, out, logsumexp, mask, scale)]
        for name, *values in zip(("out", "dq", "dk", "dv"), got, plain, truth, strict=True):
            error, bound = error_and_bound(*values, 1e-6)
            assert error <= bound, f"{sample.name} {name}: {error:.2e} is above {bound:.2e}"


LENGTHS = [(1, 1), (1, 100), (7, 64), (64, 64), (100, 7), (100, 100), (130, 65)]
MASKS = ("bool", "excluding", "late", "additive", "bias", "per image")
over_dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)
over_heads = pytest.mark.parametrize("d", [8, 40, 64, 160, 256])


@over_dtypes
@pytest.mark.parametrize(("queries", "keys"), LENGTHS)
def test_forward(kernels: ModuleType, queries: int, keys: int, dtype: torch.dtype) -> None:
    check_forward(kernels, (*drawn(queries, keys, 40, dtype)[:3], None, 40**-0.5))


@over_dtypes
@over_heads
def test_forward_of_head_sizes(kernels: ModuleType, d: int, dtype: torch.dtype) -> None:
    check_forward(kernels, (*drawn(33, 70, d, dtype)[:3], None, d**-0.5))


@over_dtypes
@pytest.mark.parametrize("kind", MASKS)
def test_forward_with_masks(kernels: ModuleType, kind: str, dtype: torch.dtype) -> None:
    check_forward(kernels, masked(kind, dtype)[1])


def check_backward(kernels: ModuleType, grad: torch.Tensor, args: tuple[Any, ...]) -> None:
    """Against autograd through the reference in float64, from the kernel's own out and logsumexp."""
    q, k, v, mask, scale = args
    wide = mask if mask is None or mask.dtype is torch.bool else mask.double()
    leaves = [x.double().requires_grad_() for x in (q, k, v)]
    truth = torch.autograd.grad(REFERENCE(*leaves, wide, scale)[0], leaves, grad.double())
    got = kernels.backward(grad, q, k, v, *kernels.forward(*args), mask, scale)
    for name, g, t in zip(("dq", "dk", "dv"), got, truth, strict=True):
        check(name, g, t, q.dtype, at_least=0.3)


@over_dtypes
@pytest.mark.parametrize(("queries", "keys"), LENGTHS)
def test_backward(kernels: ModuleType, queries: int, keys: int, dtype: torch.dtype) -> None:
    *qkv, grad = drawn(queries, keys, 40, dtype, h=1)
    check_backward(kernels, grad, (*qkv, None, 40**-0.5))


@over_dtypes
@over_heads
def test_backward_of_head_sizes(kernels: ModuleType, d: int, dtype: torch.dtype) -> None:
    *qkv, grad = drawn(33, 50, d, dtype, h=1)
    check_backward(kernels, grad, (*qkv, None, d**-0.5))


@over_dtypes
@pytest.mark.parametrize("kind", MASKS)
def test_backward_with_masks(kernels: ModuleType, kind: str, dtype: torch.dtype) -> None:
    check_backward(kernels, *masked(kind, dtype))


@pytest.mark.parametrize("additive", [False, True])
def test_a_query_without_keys_gives_zeros(kernels: ModuleType, additive: bool) -> None:
    q, k, v, grad = drawn(7, 70, 16, torch.float32)
    mask = torch.ones(7, 70, dtype=torch.bool)
    mask[3] = False
    if additive:
        mask = torch.zeros(7, 70).masked_fill(~mask, -torch.inf)
    out, logsumexp = kernels.forward(q, k, v, mask, 0.25)
    dq, dk, dv = kernels.backward(grad, q, k, v, out, logsumexp, mask, 0.25)
    assert not out[:, :, 3].any()
    assert (logsumexp[:, :, 3] == -torch.inf).all()
    assert not dq[:, :, 3].any()
    assert dq[:, :, 4].any()
    assert all(x.isfinite().all() for x in (out, dq, dk, dv))


def test_any_layout_gives_the_same_bits(kernels: ModuleType) -> None:
    """Heads and lengths swapped in memory, the head size strided, and a gradient that is one number seen everywhere."""
    q, k, v, _ = drawn(17, 35, 24, torch.float32)
    grad = torch.full((1, 1, 1, 1), 0.5).expand_as(q)
    mask = torch.randn(1, 2, 35, 17).transpose(2, 3)

    def run(*of: torch.Tensor) -> list[torch.Tensor]:
        out, logsumexp = kernels.forward(*of[:3], of[4], 0.2)
        return [out, logsumexp, *kernels.backward(of[3], *of[:3], out, logsumexp, of[4], 0.2)]

    want = run(*(x.contiguous() for x in (q, k, v, grad, mask)))
    swapped = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v)]
    strided = [x.transpose(2, 3).contiguous().transpose(2, 3) for x in (q, k, v)]
    for of in (swapped, strided):
        assert not any(x.is_contiguous() for x in of)
        for got, w in zip(run(*of, grad, mask), want, strict=True):
            assert torch.equal(got, w)


WANTED = ("one projection", "last dimension strided", "keys expanded", "large logits", "negative scale", "no images")


def test_outputs_are_laid_out_as_the_references(kernels: ModuleType) -> None:
    for sample in ops.REGISTRY["attention"].small_samples(torch.float32, "cpu"):
        if sample.name not in WANTED:
            continue
        want, got = REFERENCE(*sample.args), kernels.forward(*sample.args)
        for w, g in zip(want, got, strict=True):
            assert (w.shape, w.dtype, w.stride()) == (g.shape, g.dtype, g.stride()), sample.name
        grad = torch.ones_like(want[0])
        wants = ops.REGISTRY["attention_backward"].reference(grad, *sample.args[:3], *want, *sample.args[3:])
        gots = kernels.backward(grad, *sample.args[:3], *want, *sample.args[3:])
        for w, g in zip(wants, gots, strict=True):
            assert (w.shape, w.dtype, w.stride()) == (g.shape, g.dtype, g.stride()), sample.name
            check(sample.name, g, w.double(), torch.float32)


def test_the_op_reaches_them(kernels: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the dispatcher runs on CUDA; here the op's own kernel for the CPU comes before it."""
    calls = []
    for name in ("forward", "backward"):
        own = getattr(kernels, name)
        monkeypatch.setattr(kernels, name, lambda *a, own=own, name=name: calls.append(name) or own(*a))
    monkeypatch.setattr(ROOM, "_runs_triton", lambda q: True)
    *qkv, grad = drawn(20, 33, 16, torch.float32)
    mask = a_mask("excluding", 20, 33, 1, 2)
    got = ROOM._forward_kernel(*qkv, mask, 0.25)
    gradients = ROOM._backward_kernel(grad, *qkv, *got, mask, 0.25)
    assert calls == ["forward", "backward"]
    monkeypatch.undo()
    want = with_gradients(REFERENCE, grad, tuple(qkv), mask, 0.25)
    torch.testing.assert_close([got[0], *gradients], want)
