"""What every row of results says of where and when it was measured, and the name of its file."""

from __future__ import annotations

import os
import re
from datetime import UTC, datetime
from typing import Any

import torch

from fastdiff import ops
from fastdiff.training.run_folder import environment

THREADS = 2


def measured_on(device: str = "cpu") -> dict[str, Any]:
    """The columns date, commit, device, threads, torch and kernels. FASTDIFF_COMMIT names it where there is no repository."""
    e = environment()
    on_gpu = torch.device(device).type == "cuda"
    if on_gpu:
        from fastdiff import _C
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "commit": (os.environ.get("FASTDIFF_COMMIT") or e["git"] or "")[:10],
        "device": e["cuda"] if on_gpu else e["processor"],
        "threads": torch.get_num_threads() if on_gpu else THREADS,
        "torch": e["torch"],
        "kernels": " ".join(_C.build_info()["cuda_architectures"]) if on_gpu else ops.native.cpu_level,
    }


def file_name(device: str) -> str:
    return f"{re.sub(r'[^a-z0-9]+', '-', device.lower()).strip('-') or 'cpu'}.csv"
