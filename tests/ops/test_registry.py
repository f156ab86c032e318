"""One test over every op, on the CPU and on CUDA: values and gradients against float64, dtypes, layouts, autograd, autocast,
compile, determinism."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch
from devices import needs_cuda, over_devices, poison
from oracle import DTYPES, small

from fastdiff import ops
from fastdiff.ops import Op
from fastdiff.ops._define import FLOATS
from fastdiff.ops._library import schema_signature
from fastdiff.ops._oracle import as_tuple, error_and_bound, errors_and_bounds, in_float64

OPS = list(ops.REGISTRY.values())
DIFFERENTIABLE = [op for op in OPS if op.differentiable]


def over(ops_: list[Op]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("op", ops_, ids=lambda op: op.name)


over_dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)


@over(OPS)
@over_dtypes
@over_devices
def test_values_match_the_truth(op: Op, dtype: torch.dtype, device: str) -> None:
    for sample in small(op, dtype, device):
        for i, (error, bound) in enumerate(errors_and_bounds(op, sample.args)):
            assert error <= bound, f"{op.name} [{sample.name}] output {i}: error {error:.3e} is above {bound:.3e}"


@over(DIFFERENTIABLE)
@over_dtypes
@over_devices
def test_gradients_match_the_truth(op: Op, dtype: torch.dtype, device: str) -> None:
    def gradients(call, args):
        leaves = [_leaf(a) for a in args]
        outputs = [o for o, d in zip(as_tuple(call(*leaves)), differentiable, strict=True) if d]
        generator = torch.Generator().manual_seed(0)
        seeds = [torch.randn(o.shape, generator=generator, dtype=torch.float64).to(o.device, o.dtype) for o in outputs]
        wanted = [a for a in leaves if _is_float(a)]
        return torch.autograd.grad(outputs, wanted, seeds, allow_unused=True)

    for sample in small(op, dtype, device):
        # group_norm_silu's statistics, say, carry no gradient
        differentiable = [o.requires_grad for o in as_tuple(op(*(_leaf(a) for a in sample.args)))]
        got = gradients(op, sample.args)
        plain = gradients(op.plain, sample.args)  # torch's own autograd through the plain formula
        truth = gradients(op.reference, in_float64(sample.args))
        for i, (g, p, t) in enumerate(zip(got, plain, truth, strict=True)):
            if g is None:  # not differentiable for this argument (a table, say)
                continue
            error, bound = error_and_bound(g, p, t, max(op.floor, 1e-6))
            assert error <= bound, f"{op.name} [{sample.name}] gradient {i}: error {error:.3e} is above {bound:.3e}"


def _is_float(a: object) -> bool:
    return isinstance(a, torch.Tensor) and a.is_floating_point()


def _leaf(a: object) -> object:
    return a.detach().clone().requires_grad_() if _is_float(a) else a


@over(DIFFERENTIABLE)
@over_devices
def test_gradcheck(op: Op, device: str) -> None:
    tiny = [s for s in op.small_samples(torch.float64, device) if s.tiny]
    assert tiny, f"{op.name} has no tiny sample"
    for sample in tiny:
        args = tuple(a.requires_grad_() if _is_float(a) and a.dtype is torch.float64 else a for a in sample.args)

        def call(*a):
            return tuple(o for o in as_tuple(op(*a)) if o.requires_grad)

        assert torch.autograd.gradcheck(call, args)


@pytest.mark.skipif(find_spec("expecttest") is None, reason="torch.library.opcheck needs expecttest")
@over(OPS)
@over_devices
def test_opcheck(op: Op, device: str) -> None:
    samples = small(op, torch.float32, device)
    for sample in samples:
        torch.library.opcheck(op.overload, sample.args, test_utils=("test_schema", "test_faketensor"))
    torch.library.opcheck(op.overload, samples[0].args)  # the slow ones too: autograd registration, AOT with symbols


@over(OPS)
@over_devices
def test_outputs_are_written_in_full_and_alias_nothing(op: Op, device: str) -> None:
    for sample in small(op, torch.float32, device):
        inputs = [a for a in sample.args if isinstance(a, torch.Tensor)]
        before = [a.clone() for a in inputs]
        outputs = as_tuple(op(*sample.args))
        assert all(torch.equal(a, b) for a, b in zip(inputs, before, strict=True)), f"{sample.name} changed an input"
        pointers = {a.untyped_storage().data_ptr() for a in inputs if a.numel()}
        assert not pointers & {o.untyped_storage().data_ptr() for o in outputs if o.numel()}
        assert not any(o.isnan().any() for o in outputs), f"{sample.name} left or made NaN"


@pytest.fixture
def poisoned_memory():
    """Fresh float memory is NaN, so an element that a kernel does not write shows."""
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@over(OPS)
@over_devices
@pytest.mark.usefixtures("poisoned_memory")
def test_poisoned_outputs(op: Op, device: str) -> None:
    for dtype in DTYPES:
        for sample in small(op, dtype, device):
            poison(*as_tuple(op(*sample.args)))  # for allocations that torch's own filling does not see
            assert not any(o.isnan().any() for o in as_tuple(op(*sample.args)) if o.is_floating_point()), sample.name


@over(OPS)
@pytest.mark.cuda
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@needs_cuda
def test_same_bits_from_run_to_run_on_cuda(op: Op, dtype: torch.dtype) -> None:
    for sample in small(op, dtype, "cuda"):
        once = as_tuple(op(*sample.args))
        for _ in range(3):
            assert all(map(torch.equal, once, as_tuple(op(*sample.args)))), sample.name


@over(OPS)
def test_same_bits_from_run_to_run_and_for_any_number_of_threads(op: Op) -> None:
    threads = torch.get_num_threads()
    native = op.compiled("CPU")  # plain torch promises no bits across thread counts
    try:
        for sample in small(op, torch.float32):
            torch.set_num_threads(1)
            once, again = as_tuple(op(*sample.args)), as_tuple(op(*sample.args))
            torch.set_num_threads(3 if native else 1)
            threaded = as_tuple(op(*sample.args))
            for a, b, c in zip(once, again, threaded, strict=True):
                assert torch.equal(a, b), sample.name
                assert torch.equal(a, c), sample.name
    finally:
        torch.set_num_threads(threads)


@over(OPS)
@over_devices
def test_layout_of_outputs_is_the_inputs(op: Op, device: str) -> None:
    if op.name.endswith("_backward"):
        return  # its outputs lead with dx, which the forward's test of gradients covers
    for sample in small(op, torch.float32, device):
        x = sample.args[0]
        if not isinstance(x, torch.Tensor) or not x.is_floating_point() or x.dim() < 3:
            continue
        y = as_tuple(op(*sample.args))[0]
        if y.shape != x.shape:
            continue
        suggested = torch._prims_common.suggest_memory_format(x)
        assert y.is_contiguous(memory_format=suggested), sample.name


@over(OPS)
@over_devices
def test_fake_tensors_get_the_same_shapes_strides_and_dtypes(op: Op, device: str) -> None:
    from torch._subclasses import FakeTensorMode

    for dtype in (torch.float32, torch.bfloat16):
        for sample in small(op, dtype, device):
            with FakeTensorMode() as mode:
                fakes = [mode.from_tensor(a) if isinstance(a, torch.Tensor) else a for a in sample.args]
                described = as_tuple(op.overload(*fakes))
            for real, fake in zip(as_tuple(op(*sample.args)), described, strict=True):
                assert (real.shape, real.dtype, real.device) == (fake.shape, fake.dtype, fake.device), sample.name
                if real.numel():
                    assert real.stride() == fake.stride(), sample.name


@over(DIFFERENTIABLE)
@over_devices
def test_compiles_without_a_break(op: Op, device: str) -> None:
    sample = small(op, torch.float32, device)[0]
    args = tuple(_leaf(a) for a in sample.args)

    def loss(*a):
        return sum(o.float().square().sum() for o in as_tuple(op(*a)) if o.requires_grad)

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    expected, got = loss(*args), compiled(*args)
    torch.testing.assert_close(got, expected)
    wanted = [a for a in args if _is_float(a)]
    for a, b in zip(
        torch.autograd.grad(got, wanted, allow_unused=True),
        torch.autograd.grad(expected, wanted, allow_unused=True),
        strict=True,
    ):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b)
    with torch.no_grad():
        torch.compile(lambda *a: op(*a), fullgraph=True, backend="aot_eager")(*sample.args)


@over(OPS)
def test_differentiable_ops_have_an_autograd_kernel_and_others_say_no(op: Op) -> None:
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"fastdiff::{op.name}", "Autograd")
    sample = next((s for s in small(op, torch.float32) if any(_is_float(a) for a in s.args)), None)
    if op.differentiable or sample is None:
        return
    args = [_leaf(a) for a in sample.args]
    output = as_tuple(op(*args))[0]
    with pytest.raises(RuntimeError, match="derivative"):
        output.sum().backward()


@over(DIFFERENTIABLE)
@over_devices
def test_double_backward_vmap_and_forward_ad_are_clear_errors(op: Op, device: str) -> None:
    sample = small(op, torch.float32, device)[0]
    index = next(i for i, a in enumerate(sample.args) if _is_float(a))
    x = sample.args[index]

    def call(v):
        return as_tuple(op(*sample.args[:index], v, *sample.args[index + 1 :]))[0]

    with pytest.raises(RuntimeError, match=r"torch\.func"):
        torch.func.vmap(call)(torch.stack([x, x]))
    with pytest.raises(RuntimeError, match=r"torch\.func"):
        torch.func.jvp(call, (x,), (x,))
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
        with pytest.raises(RuntimeError, match="forward-mode"):
            call(dual)
    if f"{op.name}_backward" in ops.REGISTRY:
        leaf = x.detach().clone().requires_grad_()
        (gradient,) = torch.autograd.grad(call(leaf).square().sum(), leaf, create_graph=True)
        with pytest.raises(RuntimeError, match="second derivative"):
            gradient.sum().backward()


@over(OPS)
@over_devices
def test_autocast_casts_nothing(op: Op, device: str) -> None:
    sample = small(op, torch.float32, device)[0]
    plain = as_tuple(op(*sample.args))
    with torch.autocast(device, torch.bfloat16):
        inside = as_tuple(op(*sample.args))
    for a, b in zip(plain, inside, strict=True):
        assert a.dtype is b.dtype
        assert torch.equal(a, b)


@over(OPS)
def test_native_devices_are_those_stated(op: Op) -> None:
    compiled = ops.build_record()["compiled"]
    for key, part in (("CPU", "cpu"), ("CUDA", "cuda")):
        hidden = op.name in ops.native.disabled or op.name.removesuffix("_backward") in ops.native.disabled
        expected = key in op.native and part in compiled and not hidden
        assert op.compiled(key) == expected, f"{op.name} on {key}: compiled {op.compiled(key)}, stated {key in op.native}"


@over(OPS)
@over_devices
def test_a_nan_stays_in_its_image(op: Op, device: str) -> None:
    for sample in small(op, torch.float32, device):
        args = list(sample.args)
        index = next((i for i, a in enumerate(args) if _is_float(a) and a.dim() >= 3), None)
        if index is None or args[index].shape[0] < 2 or not args[index].numel():
            continue
        args[index] = args[index].clone()
        clean = as_tuple(op(*args))
        args[index][(0,) * args[index].dim()] = torch.nan
        poisoned = as_tuple(op(*args))
        n = args[index].shape[0]
        if not any(a.dim() >= 2 and a.shape[0] == n for a in clean):
            continue  # what went in are no images: a convolution's weight, say
        seen = False
        for a, b in zip(clean, poisoned, strict=True):
            if a.dim() and a.shape[0] == n and a.dim() >= 2:
                assert torch.equal(a[1:], b[1:]), f"{op.name} [{sample.name}]: another image changed"
                seen |= bool(b[0].isnan().any())
        assert seen, f"{op.name} [{sample.name}]: the NaN was lost"


@over(OPS)
def test_large_samples_come_last(op: Op) -> None:
    large = [s.large for s in op.samples(torch.bfloat16, "cpu")]
    assert large == sorted(large)
    assert not large or not large[0]


def test_signatures_are_read_from_schemas() -> None:
    assert schema_signature(ops.REGISTRY["film"]) == "Tensor, Tensor, Optional[Tensor], str -> Tensor"
