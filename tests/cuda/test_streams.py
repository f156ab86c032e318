"""Ops run on the caller's stream, wait for nothing, and can be captured into a graph that is replayed with other values."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from devices import DEVICE, needs_cuda, needs_two_gpus, on_device, poison
from oracle import small

from fastdiff import ops
from fastdiff.ops import Op, Sample
from fastdiff.ops._oracle import as_tuple

pytestmark = on_device
OPS = list(ops.REGISTRY.values())
over_ops = pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
CYCLES = 600_000_000  # of a kernel that only waits: a third of a second


def chosen(op: Op, device: str = DEVICE) -> list[Sample]:
    """Samples whose arguments have no two elements in one place, so that new values can be put into them."""

    def writable(a: object) -> bool:
        return not isinstance(a, torch.Tensor) or torch._debug_has_internal_overlap(a) != 1

    return [s for dtype in (torch.float32, torch.bfloat16) for s in small(op, dtype, device) if all(map(writable, s.args))]


def change(args: tuple[object, ...]) -> None:
    """Other values in place. Integers stay below 10, where tables of coefficients have their rows."""
    for a in args:
        if isinstance(a, torch.Tensor) and a.is_floating_point():
            a.copy_(torch.randn_like(a) * 0.5 + 1)
        elif isinstance(a, torch.Tensor) and a.dtype in (torch.int64, torch.int32):
            a.copy_((a * 3 + 1) % 10)


def equal(a: object, b: object) -> bool:
    return all(torch.equal(x.nan_to_num(7), y.nan_to_num(7)) for x, y in zip(as_tuple(a), as_tuple(b), strict=True))


@over_ops
def test_new_values_change_the_result(op: Op) -> None:
    """What the test of graphs rests on."""
    filled = [
        s
        for s in chosen(op)
        if all(a.numel() for a in s.args if isinstance(a, torch.Tensor)) and any(o.numel() for o in as_tuple(op(*s.args)))
    ]
    assert len(filled) >= 2
    for sample in filled:
        before = [o.clone() for o in as_tuple(op(*sample.args))]
        change(sample.args)
        assert not equal(before, op(*sample.args)), sample.name


@needs_cuda
@over_ops
def test_a_graph_replays_with_new_values(op: Op) -> None:
    for sample in chosen(op):
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # kernels are loaded, and Triton's compiled, outside of the capture
            op(*sample.args)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = as_tuple(op(*sample.args))
        for _ in range(3):
            change(sample.args)
            for output in captured:
                output.fill_(torch.nan if output.is_floating_point() else -1)
            graph.replay()
            torch.cuda.synchronize()
            assert equal(captured, op(*sample.args)), sample.name


@needs_cuda
@over_ops
def test_a_call_on_another_stream_runs_there(op: Op) -> None:
    """While the default stream is busy: a kernel on the wrong one would leave its output as it was."""
    side = torch.cuda.Stream()
    for sample in chosen(op)[:4]:
        want = as_tuple(op(*sample.args))
        torch.cuda.synchronize()
        with torch.cuda.stream(side):
            poison(*as_tuple(op(*sample.args)))  # and its memory is the stream's from here on
        torch.cuda.synchronize()
        torch.cuda._sleep(CYCLES)
        busy = torch.cuda.Event()
        busy.record()
        with torch.cuda.stream(side):
            got = as_tuple(op(*sample.args))
        side.synchronize()
        assert not busy.query(), "the call waited for the default stream"
        with torch.cuda.stream(side):
            on_host = [o.cpu() for o in got]
        assert equal(on_host, [o.cpu() for o in want]), sample.name
        torch.cuda.synchronize()


@contextmanager
def no_waiting() -> Iterator[None]:
    """Whatever waits for the GPU is an error."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@needs_cuda
@over_ops
def test_calls_and_their_derivatives_do_not_wait(op: Op) -> None:
    for sample in small(op, torch.float32, DEVICE)[:6]:
        leaves = [a.detach().clone().requires_grad_(op.differentiable) if _is_float(a) else a for a in sample.args]
        op(*leaves)  # what is compiled or loaded may wait
        with no_waiting():
            outputs = [o for o in as_tuple(op(*leaves)) if o.requires_grad]
            if outputs:
                wanted = [a for a in leaves if _is_float(a)]
                torch.autograd.grad(outputs, wanted, [torch.ones_like(o) for o in outputs], allow_unused=True)


@needs_cuda
def test_public_functions_do_not_wait() -> None:
    x, heads = torch.randn(2, 8, 4, 4, device=DEVICE), torch.randn(2, 1, 8, 16, device=DEVICE)
    t, seeds = torch.zeros(2, dtype=torch.int64, device=DEVICE), torch.zeros(2, dtype=torch.int64, device=DEVICE)
    table, weight = torch.rand(10, 6, device=DEVICE), torch.randn(8, 8, 3, 3, device=DEVICE)

    def calls() -> None:
        ops.film(x, x[:, :, 0, 0], x[:, :, 1, 1])
        ops.group_norm_silu(x, 4)
        ops.q_sample(x, t, table[:, 0], table[:, 1], seeds=seeds, step=3)
        ops.ddpm_step(x, x, t, table[:, :5], seeds=seeds, step=3, clip=1.0)
        ops.sampler_step(x, x, table[0], seeds=seeds, step=3)
        ops.timestep_embedding(t, 16)
        ops.philox_normal((2, 3), seeds, 7)
        ops.philox_uniform(seeds, 7, 3)
        ops.attention(heads, heads, heads)
        _, partials = ops.conv2d_fused(x, weight, padding=1, statistics=True)
        ops.norm_affine(partials, 4)

    calls()  # what is compiled or loaded may wait
    with no_waiting():
        calls()


@needs_two_gpus
@over_ops
def test_the_second_gpu_gives_the_same(op: Op) -> None:
    """Called while the first is current, as in model parallelism."""
    assert torch.cuda.current_device() == 0
    for first, second in zip(small(op, torch.float32, "cuda:0"), small(op, torch.float32, "cuda:1"), strict=True):
        got = as_tuple(op(*second.args))
        assert all(o.device == torch.device("cuda:1") for o in got)
        assert equal([o.cpu() for o in as_tuple(op(*first.args))], [o.cpu() for o in got]), first.name


def _is_float(a: object) -> bool:
    return isinstance(a, torch.Tensor) and a.is_floating_point()
