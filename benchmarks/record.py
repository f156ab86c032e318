"""What every row of results says of where and when it was measured, and the name of its file."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
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


def write_rows(path: Path, columns: Sequence[str], rows: Sequence[dict[str, Any]], key: str) -> Path:
    """Rows of what was measured now (by its column `key`) take the place of earlier ones; others stay."""
    measured = {row[key] for row in rows}
    kept = [row for row in csv.DictReader(path.open()) if row[key] not in measured] if path.exists() else []
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows([*kept, *rows])
    return path
