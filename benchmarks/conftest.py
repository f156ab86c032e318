"""What benchmarks share: two threads, and the machine in the header."""

from __future__ import annotations

import torch

from fastdiff import ops
from fastdiff.training.run_folder import environment

THREADS = 2


def pytest_configure() -> None:
    torch.set_num_threads(THREADS)


def pytest_report_header() -> str:
    e = environment()
    return f"{e['processor']}, {THREADS} threads, torch {e['torch']}, kernels {ops.native.cpu_level}"
