"""AMX's machine code on machines without AMX: catcher.cpp does each tile instruction when it raises its signal."""

from __future__ import annotations

import ctypes
import platform
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from oracle import cpu_level

from fastdiff import ops
from fastdiff.ops._library import EMULATED, multiplies_tiles

HERE = Path(__file__).parent
FLAGS = (
    "-std=c++20 -O2 -fPIC -shared -Wno-psabi -ffp-contract=off -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx2 -mfma -mf16c"
)

COUNTED = ["configurations", "loads", "hinted", "products", "zeros", "stores", "releases"]
COUNTED += ["not_aligned", "other_strides", "rows_loaded", "rows_multiplied"]  # as in catcher.cpp


class Counts(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int64) for name in COUNTED]


def missing() -> str | None:
    if platform.machine() != "x86_64" or platform.system() != "Linux" or shutil.which("g++") is None:
        return "needs g++ and the registers of a signal on x86-64 Linux"
    if not ops.REGISTRY["conv2d_fused"].compiled("CPU"):
        return "no kernel to run"
    from fastdiff import _C

    features = _C.cpu_features()
    if features["amx_bf16"]:
        return "this machine has AMX: no signal to catch"
    if not features["avx512bf16"] or "amx" not in _C.build_info()["cpu"]:
        return "kernels of level amx need AVX512_BF16 beside AMX, and a compiler that assembles them"
    return None


pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))


@pytest.fixture(scope="module")
def catcher(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    path = tmp_path_factory.mktemp("amx") / "catcher.so"
    sources = ["-I", str(HERE.parent.parent / "csrc"), str(HERE / "catcher.cpp")]
    subprocess.run(["g++", *FLAGS.split(), *sources, "-o", str(path)], check=True)
    library = ctypes.CDLL(str(path))
    library.caught_counts.restype = ctypes.POINTER(Counts)
    return library


def caught(catcher: ctypes.CDLL, call: Callable[[], Any]) -> tuple[Any, Counts]:
    """What the call returns at level amx, by one thread, and what was caught."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with cpu_level("amx_unchecked"):
            assert multiplies_tiles()
            catcher.begin_catching()
            try:
                return call(), catcher.caught_counts().contents
            finally:
                catcher.end_catching()
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("size", [(7, 7), (28, 28), (3, 33)], ids=str)
def test_machine_code_gives_the_emulations_bits(size: tuple[int, int], dtype: torch.dtype, catcher: ctypes.CDLL) -> None:
    x, weight = torch.randn(2, 40, *size).to(dtype), (torch.randn(33, 40, 3, 3) / 20).to(dtype)
    packed = ops.pack_conv_weight(weight, split=dtype is torch.float32)

    def call() -> tuple[torch.Tensor, torch.Tensor]:
        return ops.conv2d_fused(x, weight, packed=packed, padding=1, act_in="silu", statistics=True)

    got, counts = caught(catcher, call)
    with cpu_level(EMULATED):
        want = call()
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    assert counts.configurations == counts.releases > 0
    assert counts.products > 0
    assert counts.hinted * 2 <= counts.loads, "weights alone are not wanted again soon"
    assert (counts.not_aligned, counts.other_strides) == (0, 0)


def test_work_is_that_of_two_by_two_tiles(catcher: ctypes.CDLL) -> None:
    """28x28, 64 channels: a row is two tiles of 14, their steps 9 elements by 2 blocks of 32 channels."""
    x, weight = torch.randn(1, 64, 28, 28).bfloat16(), torch.randn(64, 64, 3, 3).bfloat16()
    packed = ops.pack_conv_weight(weight)
    _, counts = caught(catcher, lambda: ops.conv2d_fused(x, weight, packed=packed, padding=1))
    pairs_of_blocks = 28 * 2  # rows, blocks of 32 outputs
    assert counts.stores == counts.zeros == 4 * pairs_of_blocks
    assert counts.products == counts.loads == 4 * pairs_of_blocks * 9 * 2
    assert counts.rows_multiplied == 14 * counts.products, "no position is computed that is not an output"


def test_the_emulated_product(catcher: ctypes.CDLL) -> None:
    """By the manual's definition: even and odd terms summed apart by fused multiply-adds, then both, then the old sum."""
    random = np.random.default_rng(0)
    for rows, pairs, columns in ((16, 16, 16), (5, 3, 7), (1, 1, 1)):
        sums = random.standard_normal((rows, columns)).astype(np.float32)
        a, b = (
            (random.standard_normal(shape).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
            for shape in ((rows, pairs, 2), (pairs, columns, 2))
        )
        got = product(catcher, sums, a, b)
        x, w = widened(a), widened(b)
        halves = []
        for i in (0, 1):
            half = np.zeros((rows, columns), np.float32)
            for k in range(pairs):  # a product of bf16 is exact in float64, and so, but for luck, is the sum's last place
                half = (half.astype(np.float64) + np.outer(x[:, k, i], w[k, :, i])).astype(np.float32)
            halves.append(half)
        assert np.array_equal(got, sums + (halves[0] + halves[1]))


def test_the_emulated_product_flushes_subnormals(catcher: ctypes.CDLL) -> None:
    least = 2.0**-126
    for x, w, before, want in (
        (least / 2, 1.0, 0.0, 0.0),  # an operand below the least normal number is zero
        (least, 0.5, 0.0, 0.0),  # so is a result
        (least, 1.0, 0.0, least),
        (1.0, 0.0, least / 2, 0.0),  # so is the sum before
        (2.0**-120, 1.0, -(2.0**-120) + 2.0**-126, least),
        (np.inf, 0.0, 1.0, np.nan),
    ):
        a, b = (np.array([[[v, 0]]], np.float32).view(np.uint32) >> 16 for v in (x, w))
        got = product(catcher, np.array([[before]], np.float32), a.astype(np.uint16), b.astype(np.uint16))
        assert np.array_equal(got, np.array([[want]], np.float32), equal_nan=True), (x, w, before)


def product(catcher: ctypes.CDLL, sums: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    out = sums.copy()
    catcher.emulated_product(
        sums.shape[0], a.shape[1], sums.shape[1], *(v.ctypes.data_as(ctypes.c_void_p) for v in (out, a, b))
    )
    return out


def widened(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
