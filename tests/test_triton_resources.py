"""Attention's Triton kernels compile for sm_80 and sm_90 without spilling, onto tensor cores. No GPU is needed.

A part of the table of `triton_resources.py`, with all of it under FASTDIFF_FULL.
"""

from __future__ import annotations

import dataclasses
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

if find_spec("triton") is None:
    pytest.skip("triton is not installed", allow_module_level=True)
if not (Path(find_spec("triton").origin).parent / "backends/nvidia/bin/ptxas").exists():
    pytest.skip("this triton has no ptxas", allow_module_level=True)

KERNELS = ("forward", "delta", "dkdv", "dq")
PART = [
    *(("bf16", head, "none", capability) for head in (64, 128) for capability in (80, 90)),
    *(("bf16", head, mask, 80) for head in (64, 128) for mask in ("bool", "added")),
    *(("bf16", head, "added", 90) for head in (64, 128)),
    ("bf16", 40, "added", 80),
    *(("bf16", 160, mask, 80) for mask in ("none", "added")),
    *(("fp32", 64, mask, 80) for mask in ("none", "bool")),
    ("fp32", 128, "added", 80),
    ("fp32", 64, "added", 90),
]


@pytest.fixture(scope="module")
def table() -> dict[Any, dict[str, str]]:
    import triton_resources

    return triton_resources.committed()


def _cases() -> list[tuple[Any, ...]]:
    return [(kernel, *case) for case in PART for kernel in KERNELS if kernel != "delta" or case[2] == "none"]


def test_the_table_has_all_cases_and_nothing_in_it_spills(table: dict[Any, dict[str, str]]) -> None:
    import triton_resources

    assert list(table) == list(triton_resources.cases())
    assert len({row["triton"] for row in table.values()}) == 1
    for case, row in table.items():
        assert row["spilled"] == "0", case
        assert int(row["shared"]) <= triton_resources.SHARED_LIMIT[case.capability], case
        tiling = [row[key] for key in ("queries", "keys", "warps", "stages")]
        assert tiling == [str(n) for n in triton_resources.tiling_of(case)], f"{case}: the table is of another tiling"


@pytest.mark.parametrize(("kernel", "dtype", "head", "mask", "capability"), _cases())
def test_kernels_are_as_in_the_table(
    table: dict[Any, dict[str, str]], kernel: str, dtype: str, head: int, mask: str, capability: int
) -> None:
    import triton_resources

    case = triton_resources.Case(kernel, dtype, head, mask, capability)
    found = triton_resources.compiled(case)
    assert not triton_resources.compare(case, found, table)
    if kernel == "delta":
        return
    assert "ex2.approx" in found.instructions
    if dtype == "fp32":
        assert "mma" not in found.instructions  # tf32 would be that
    else:
        assert ("wgmma" if capability == 90 and mask == "none" else "mma") in found.instructions
    if dtype == "bf16" and head in (64, 128):
        assert "cp.async" in found.instructions


@pytest.mark.skipif("FASTDIFF_FULL" not in os.environ, reason="minutes: FASTDIFF_FULL=1")
def test_all_kernels_are_as_in_the_table(table: dict[Any, dict[str, str]]) -> None:
    import triton_resources

    wrong = {case: triton_resources.compare(case, triton_resources.compiled(case), table) for case in table}
    assert not {case: what for case, what in wrong.items() if what}


def test_a_spill_would_be_seen(table: dict[Any, dict[str, str]]) -> None:
    import triton_resources

    case = triton_resources.Case("forward", "bf16", 128, "none", 80)
    too_much = triton_resources.compiled(case, triton_resources.tilings.Tiling(128, 128, 4, 1))
    assert too_much.spilled > 0
    assert "bytes of spills" in triton_resources.compare(case, too_much, table)


def test_a_difference_would_be_seen(table: dict[Any, dict[str, str]]) -> None:
    """With the table's Triton; with another only what is wrong by itself."""
    import triton_resources

    case = triton_resources.Case("forward", "bf16", 128, "none", 80)
    row = table[case] | {"triton": triton_resources.triton.__version__}
    r = triton_resources.Resources(*(int(row[key]) for key in ("registers", "shared", "spilled")), row["instructions"])
    more = dataclasses.replace(r, registers=r.registers + 1)
    assert not triton_resources.compare(case, r, {case: row})
    assert triton_resources.compare(case, more, {case: row}).startswith(f"registers {more.registers}, in the table")
    assert not triton_resources.compare(case, more, {case: row | {"triton": "0.0"}})
    assert "shared memory" in triton_resources.compare(case, dataclasses.replace(r, shared=1 << 20), {case: row})
    assert triton_resources.compare(case, r, {}) == "no row in the table"
