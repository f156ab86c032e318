"""Ops take memory from torch's allocator, no more than they say, and errors name what is wrong."""

from __future__ import annotations

import pytest
import torch
from devices import DEVICE, OTHER_DEVICE, needs_cuda, on_device
from oracle import small

from fastdiff import ops
from fastdiff.ops import Op
from fastdiff.ops._oracle import as_tuple

pytestmark = on_device
OPS = list(ops.REGISTRY.values())
GIGABYTE = 1 << 30
NO_WORKSPACE = ("film", "philox_normal", "philox_uniform", "q_sample", "ddpm_step", "sampler_step")


def _requested(which: str = "current") -> int:
    """Bytes asked of torch's allocator, before it rounds them up."""
    return torch.cuda.memory_stats()[f"requested_bytes.all.{which}"]


@needs_cuda
@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_memory_is_torchs_and_given_back(op: Op) -> None:
    for sample in [s for s in op.samples(torch.float32, DEVICE) if not s.tiny]:
        op(*sample.args)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = _requested()
        outputs = as_tuple(op(*sample.args))
        size = sum(o.nbytes for o in outputs)
        assert _requested() - before == size, sample.name
        if op.name in NO_WORKSPACE and sample.large:
            assert _requested("peak") - before == size, sample.name
        del outputs
        assert _requested() == before, sample.name


@needs_cuda
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_group_norm_takes_little_beside_its_output(layout: torch.memory_format) -> None:
    x = torch.randn(16, 64, 64, 64, device=DEVICE).contiguous(memory_format=layout)
    op = ops.REGISTRY["group_norm_silu"]
    args = (x, 32, None, None, 1e-5, None, None, "silu")
    op(*args)
    torch.cuda.reset_peak_memory_stats()
    before = _requested()
    op(*args)
    assert x.nbytes <= _requested("peak") - before <= 1.05 * x.nbytes


@needs_cuda
def test_attention_holds_no_matrix_of_queries_by_keys() -> None:
    q, k, v = (torch.randn(2, 4, 2048, 64, device=DEVICE, dtype=torch.bfloat16, requires_grad=True) for _ in "qkv")
    matrix = 2 * 4 * 2048 * 2048 * 2
    ops.attention(q, k, v).sum().backward()
    torch.cuda.reset_peak_memory_stats()
    before = _requested()
    ops.attention(q, k, v).sum().backward()
    assert _requested("peak") - before < matrix // 2


@needs_cuda
@pytest.mark.skipif(not torch.cuda.is_available() or torch.cuda.mem_get_info()[1] < 40 * GIGABYTE, reason="takes 26 GB")
def test_more_blocks_than_a_launch_has_are_an_error() -> None:
    """2^31 rows without pixels: no memory for x, 26 GB for the sums."""
    torch.cuda.empty_cache()
    x = torch.empty(1 << 16, 1 << 15, 0, device=DEVICE, dtype=torch.bfloat16)
    scale = torch.ones((), device=DEVICE, dtype=torch.bfloat16).expand(x.shape[:2])
    with pytest.raises(RuntimeError, match="more elements than one launch covers"):
        ops.REGISTRY["film_backward"](x, x, scale, None, "silu")
    torch.cuda.empty_cache()


@needs_cuda
def test_groups_that_just_fill_shared_memory() -> None:
    """Around the sizes at which a warp, a block unasked, then any block has no room: a launch that asks for too much fails."""
    op = ops.REGISTRY["group_norm_silu"]
    for dtype in (torch.float32, torch.bfloat16):
        for limit in (99 << 10, 48 << 10, (48 << 10) // 8):
            for bytes_ in range(limit - 320, limit + 65, 16):
                x = torch.randn(2, 1, bytes_ // dtype.itemsize, device=DEVICE, dtype=dtype)
                got = op(x, 1, None, None, 1e-5, None, None, "none")[0]
                want = torch.nn.functional.group_norm(x.double(), 1)
                torch.testing.assert_close(got.double(), want, rtol=1e-2, atol=1e-2)


X = torch.zeros(2, 8, 4, 4)
SMALL = torch.zeros(2, 8)
INTEGERS = torch.zeros(2, dtype=torch.int64)
TABLE = torch.rand(10, 6)


@pytest.mark.parametrize(
    ("call", "arguments", "name"),
    [
        (ops.film, {"x": X, "scale": SMALL, "shift": SMALL}, "scale"),
        (ops.film, {"x": X, "scale": SMALL, "shift": SMALL}, "shift"),
        (ops.group_norm_silu, {"x": X, "groups": 2, "weight": SMALL[0]}, "weight"),
        (ops.group_norm_silu, {"x": X, "groups": 2, "scale": SMALL}, "scale"),
        (ops.q_sample, {"x0": X, "t": INTEGERS, "signal": TABLE[:, 0], "sigma": TABLE[:, 1], "seeds": INTEGERS}, "t"),
        (ops.q_sample, {"x0": X, "t": INTEGERS, "signal": TABLE[:, 0], "sigma": TABLE[:, 1], "seeds": INTEGERS}, "sigma"),
        (ops.ddpm_step, {"x": X, "m": X, "t": INTEGERS, "table": TABLE[:, :5], "seeds": INTEGERS}, "m"),
        (ops.ddpm_step, {"x": X, "m": X, "t": INTEGERS, "table": TABLE[:, :5], "seeds": INTEGERS}, "table"),
        (ops.sampler_step, {"x": X, "m": X, "coefficients": TABLE[0]}, "coefficients"),
        (ops.philox_normal, {"shape": (2, 3), "seeds": INTEGERS, "step": torch.tensor(0)}, "step"),
        (ops.attention, {"q": X.view(2, 1, 16, 8), "k": X.view(2, 1, 16, 8), "v": X.view(2, 1, 16, 8)}, "v"),
    ],
    ids=lambda v: getattr(v, "__name__", v) if not isinstance(v, dict) else "",
)
def test_a_tensor_elsewhere_is_named(call, arguments: dict, name: str) -> None:
    placed = {
        key: a.to(OTHER_DEVICE if key == name else DEVICE) if isinstance(a, torch.Tensor) else a for key, a in arguments.items()
    }
    with pytest.raises(ValueError, match=rf"^{name} must be on .* device {DEVICE}"):
        call(**placed)


WHERE = [("q_sample", 5, "seeds"), ("ddpm_step", 5, "seeds"), ("sampler_step", 5, "seeds")]
WHERE += [("film_backward", 0, "grad"), ("group_norm_silu_backward", 0, "grad"), ("group_norm_silu_backward", 2, "mean")]


@needs_cuda
@pytest.mark.parametrize(("op", "at", "name"), WHERE)
def test_the_kernels_check_devices_again(op: str, at: int, name: str) -> None:
    """A pointer of the host on the GPU would end the process."""
    sample = next(s for s in small(ops.REGISTRY[op], torch.float32, DEVICE) if s.args[at] is not None)
    args = list(sample.args)
    args[at] = args[at].cpu()
    with pytest.raises(RuntimeError, match=f"{name} must be on the images' device"):
        ops.REGISTRY[op](*args)
