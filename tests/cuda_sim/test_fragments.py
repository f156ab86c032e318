"""The simulator's mma.sync and ldmatrix against products of matrices, by the layouts of fragments that the PTX ISA prints."""

from __future__ import annotations

import ctypes

import pytest
import torch
from cuda_sim.build import HERE, link, missing
from torch.testing import assert_close

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))
ALL = 0xFFFFFFFF


@pytest.fixture(scope="module")
def warp() -> ctypes.CDLL:
    library = ctypes.CDLL(str(link("plain", [HERE / "fragments.cu"])))
    for function in (library.multiply_fragments, library.load_rows, library.load_where_others_wait):
        function.restype = ctypes.c_char_p
    return library


def at(tensor: torch.Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())


# Row and column of each element that a lane holds, in the order of its registers ("Matrix Fragments for mma.m16n8k16").
def of_a(lane: int, i: int) -> tuple[int, int]:
    group, in_group = lane >> 2, lane % 4
    row = group if 0 <= i < 2 or 4 <= i < 6 else group + 8
    return row, in_group * 2 + (i & 1) + (8 if i >= 4 else 0)


def of_b(lane: int, i: int) -> tuple[int, int]:
    group, in_group = lane >> 2, lane % 4
    return in_group * 2 + (i & 1) + (8 if i >= 2 else 0), group


def of_sums(lane: int, i: int) -> tuple[int, int]:
    group, in_group = lane >> 2, lane % 4
    return group if i < 2 else group + 8, in_group * 2 + (i & 1)


def held(matrix: torch.Tensor, place: object, count: int) -> torch.Tensor:
    """[32 lanes, count] of a matrix."""
    return torch.stack([torch.stack([matrix[place(lane, i)] for i in range(count)]) for lane in range(32)])


def operands(dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(0)
    return torch.randn(16, 16).to(dtype), torch.randn(16, 8).to(dtype), torch.randn(16, 8)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_product_of_matrices(dtype: torch.dtype, warp: ctypes.CDLL) -> None:
    a, b, start = operands(dtype)
    left, right, sums = held(a, of_a, 8), held(b, of_b, 4), held(start, of_sums, 4)
    assert warp.multiply_fragments(dtype is torch.float16, at(left), at(right), at(sums), ALL) is None
    want = start.double() + a.double() @ b.double()
    assert_close(sums.double(), held(want, of_sums, 4), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("matrices", [1, 2, 4])
def test_rows_of_matrices(matrices: int, transposed: bool, warp: ctypes.CDLL) -> None:
    rows = torch.arange(32 * 8, dtype=torch.int16)
    out = torch.zeros(32, 4, 2, dtype=torch.int16)
    assert warp.load_rows(matrices, transposed, at(rows), at(out)) is None
    for m, matrix in enumerate(rows.view(4, 8, 8)[:matrices]):
        matrix = matrix.T if transposed else matrix
        for lane in range(32):
            assert out[lane, m].tolist() == matrix[lane // 4, lane % 4 * 2 : lane % 4 * 2 + 2].tolist(), (m, lane)
    assert not out[:, matrices:].any()


def test_a_lane_that_does_not_come_is_an_error(warp: ctypes.CDLL) -> None:
    a, b, start = operands(torch.bfloat16)
    left, right, sums = held(a, of_a, 8), held(b, of_b, 4), held(start, of_sums, 4)
    said = warp.multiply_fragments(False, at(left), at(right), at(sums), ALL & ~(1 << 5))
    assert said.startswith(b"a warp operation waits for lane 5, which has exited")


def test_lanes_at_different_operations_are_an_error(warp: ctypes.CDLL) -> None:
    rows = torch.zeros(32 * 8, dtype=torch.int16)
    said = warp.load_where_others_wait(at(rows))
    assert said.startswith(b"lanes of a warp wait at different operations: ")
    assert b"ldmatrix" in said
    assert b"__syncwarp" in said
