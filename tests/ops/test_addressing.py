"""Elements beyond 2^31: one image lies many times over in the address space, so the last must come out as the first."""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from devices import needs_cuda
from oracle import needs_kernel

from fastdiff import ops

SHAPE, TIMES = (16, 2048, 2048), 33  # an image of 2^26 elements, 128 MB of bf16; together 2^31 + 2^26 elements
FREE = 13 << 30  # x costs one image, but two outputs of x's size are real

maps_linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="maps one memory many times as Linux does")
takes_memory = pytest.mark.skipif(
    sys.platform.startswith("linux") and os.sysconf("SC_AVPHYS_PAGES") * mmap.PAGESIZE < FREE, reason="takes 13 GB of memory"
)


@contextmanager
def repeated(image: torch.Tensor, times: int) -> Iterator[torch.Tensor]:
    """[times, ...] of which every image is the same memory."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    size, fixed = image.nbytes, 0x10
    assert size % mmap.PAGESIZE == 0
    file = os.memfd_create("image")
    os.ftruncate(file, size)
    start = libc.mmap(None, size * times, 0, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
    try:
        for i in range(times):
            place = libc.mmap(start + i * size, size, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED | fixed, file, 0)
            assert place == start + i * size, os.strerror(ctypes.get_errno())
        memory = (ctypes.c_char * (size * times)).from_address(start)
        images = torch.frombuffer(memory, dtype=image.dtype).reshape(times, *image.shape)
        images[0] = image
        yield images
    finally:
        libc.munmap(start, size * times)
        os.close(file)


def group_norm_silu(x: torch.Tensor) -> torch.Tensor:
    scale = torch.full((1, x.shape[1]), 0.5, device=x.device).expand(x.shape[:2])
    return ops.group_norm_silu(x, 4, torch.ones(x.shape[1], device=x.device), None, 1e-5, scale, scale)


def group_norm_silu_backward(x: torch.Tensor) -> torch.Tensor:
    _, mean, rstd = ops.REGISTRY["group_norm_silu"](x[:1], 4, None, None, 1e-5, None, None, "silu")
    mean, rstd = (v.expand(len(x), -1) for v in (mean, rstd))
    return ops.REGISTRY["group_norm_silu_backward"](x, x, mean, rstd, 4, None, None, None, None, "silu")[0]


def film(x: torch.Tensor) -> torch.Tensor:
    scale = torch.full(x.shape[:2], 0.5, device=x.device)
    return ops.film(x, scale, scale / 2, "silu")


def seven(x: torch.Tensor) -> torch.Tensor:
    """One seed for all images."""
    return torch.full((len(x),), 7, device=x.device)


def q_sample(x: torch.Tensor) -> torch.Tensor:
    table = torch.rand(10, generator=torch.Generator().manual_seed(0)).to(x.device)
    return ops.q_sample(x, torch.tensor([3], device=x.device), table, table, seeds=seven(x))[0]


def ddpm_step(x: torch.Tensor) -> torch.Tensor:
    table = torch.rand(10, 5, generator=torch.Generator().manual_seed(0)).to(x.device)
    return ops.ddpm_step(x, x, torch.tensor([3], device=x.device), table, seeds=seven(x))


def sampler_step(x: torch.Tensor) -> torch.Tensor:
    row = torch.tensor([0.9, 0.1, 0.5, 0.4, 0.3, 0.0], device=x.device)
    return ops.sampler_step(x, x, row, seeds=seven(x))[0]


CALLS = (group_norm_silu, group_norm_silu_backward, film, q_sample, ddpm_step, sampler_step)


@maps_linux
@takes_memory
@needs_kernel("group_norm_silu")
def test_the_last_image_is_the_first() -> None:
    """In one test, since two at a time would take twice the memory."""
    image = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    with repeated(image, TIMES) as images:
        assert images.numel() > 2**31
        for call in CALLS:
            _holds(call, images)


@needs_cuda
@pytest.mark.cuda
def test_the_last_image_is_the_first_on_cuda() -> None:
    if torch.cuda.mem_get_info()[0] < FREE + (FREE >> 1):
        pytest.skip("takes 19 GB of the GPU's memory")
    image = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0)).to("cuda", torch.bfloat16)
    images = image.expand(TIMES, *SHAPE).contiguous()
    assert images.numel() > 2**31
    for call in CALLS:
        _holds(call, images)
    del images
    torch.cuda.empty_cache()  # for the tests that run beside this one


def _holds(call: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor) -> None:
    with torch.no_grad():
        alone, many = call(images[:1]), call(images)
        for i in (0, TIMES - 2, TIMES - 1):
            assert torch.equal(many[i], alone[0]), f"{call.__name__}: image {i}"
    assert alone.isfinite().all()
