"""What every row of results says of where and when it was measured, and the name of its file."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any

from fastdiff import ops
from fastdiff.training.run_folder import environment

THREADS = 2


def measured_on() -> dict[str, Any]:
    """The columns date, commit, device, threads, torch and kernels."""
    e = environment()
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "commit": (e["git"] or "")[:10],
        "device": e["processor"],
        "threads": THREADS,
        "torch": e["torch"],
        "kernels": ops.native.cpu_level,
    }


def file_name(device: str) -> str:
    return f"{re.sub(r'[^a-z0-9]+', '-', device.lower()).strip('-') or 'cpu'}.csv"
