"""Where tests of a device run: on CUDA, or, for a developer without a GPU, as far as possible on the CPU.

FASTDIFF_TEST_DEVICE=cpu pytest tests/cuda    runs the bodies that do not need CUDA itself
"""

from __future__ import annotations

import os

import pytest
import torch

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # torch asks for it where memory is poisoned and double multiplied

DEVICE = os.environ.get("FASTDIFF_TEST_DEVICE", "cuda")
HAS_CUDA = torch.cuda.is_available()

_NO_GPU = "torch sees no GPU here"
needs_cuda = pytest.mark.skipif(not (HAS_CUDA and DEVICE.startswith("cuda")), reason=_NO_GPU)
needs_two_gpus = pytest.mark.skipif(not HAS_CUDA or torch.cuda.device_count() < 2, reason="there is one GPU or none")

# For modules whose tests run on DEVICE.
on_device = [
    pytest.mark.cuda,
    pytest.mark.skipif(DEVICE.startswith("cuda") and not HAS_CUDA, reason=f"{_NO_GPU}; see tests/devices.py"),
]

# For tests that hold of every device.
over_devices = pytest.mark.parametrize(
    "device",
    ["cpu", pytest.param("cuda", marks=[pytest.mark.cuda, pytest.mark.skipif(not HAS_CUDA, reason=_NO_GPU)])],
)

OTHER_DEVICE = "cpu" if DEVICE.startswith("cuda") else "meta"  # a device that is not DEVICE


def poison(*like: torch.Tensor) -> None:
    """Leave freed memory of these tensors' sizes full of NaN, or of 0xFF, for torch's allocator to give out next."""
    for _ in range(2):  # an allocator may keep one of a size for itself
        held = [torch.empty(max(x.nbytes, 1), dtype=torch.uint8, device=x.device).fill_(0xFF) for x in like]
        del held
