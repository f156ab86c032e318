"""Attention's Triton kernels compile for sm_80 and sm_90 without spilling, onto tensor cores. No GPU is needed."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

if find_spec("triton") is None:
    pytest.skip("triton is not installed", allow_module_level=True)
if not (Path(find_spec("triton").origin).parent / "backends/nvidia/bin/ptxas").exists():
    pytest.skip("this triton has no ptxas", allow_module_level=True)

BF16, FP32 = torch.bfloat16, torch.float32
NO_MASK, BOOL, ADDED = 0, 1, 2
CASES = [
    *((head, capability, BF16, NO_MASK) for head in (64, 128) for capability in (80, 90)),
    *((head, 80, BF16, mask) for head in (64, 128) for mask in (BOOL, ADDED)),
    *((head, 90, BF16, ADDED) for head in (64, 128)),
    (40, 80, BF16, ADDED),
    *((160, 80, BF16, mask) for mask in (NO_MASK, ADDED)),
    *((64, 80, FP32, mask) for mask in (NO_MASK, BOOL)),
]


@pytest.mark.parametrize("kernel", ["forward", "dkdv", "dq"])
@pytest.mark.parametrize(("head", "capability", "dtype", "mask"), CASES)
def test_nothing_spills(kernel: str, head: int, capability: int, dtype: torch.dtype, mask: int) -> None:
    import triton_resources

    found = triton_resources.compiled(kernel, head, capability, dtype, mask=mask)
    assert found.spilled == 0, f"{found.spilled} bytes of spills, {found.registers} registers"
    assert found.shared <= triton_resources.SHARED_LIMIT[capability]
    assert "ex2.approx" in found.instructions
    if dtype is FP32:
        assert "mma" not in found.instructions  # tf32 would be that
    else:
        assert ("wgmma" if capability == 90 and head in (64, 128) and mask == NO_MASK else "mma") in found.instructions
    if dtype is BF16 and head in (64, 128):
        assert "cp.async" in found.instructions


def test_a_spill_would_be_seen() -> None:
    import triton_resources

    too_much = triton_resources.tilings.Tiling(128, 128, 4, 1)
    assert triton_resources.compiled("forward", 128, 80, tiling=too_much).spilled > 0
