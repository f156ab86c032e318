"""Freed memory stays in the process: in a process of its own, since the setting cannot be taken back."""

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, torch
from fastdiff.memory import keep_freed_memory

def faults(count):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(count):
        torch.ones(4_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

kept = keep_freed_memory()
faults(30)
print(int(kept), faults(20))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator is the one that is told")
def test_large_tensors_are_made_without_page_faults() -> None:
    out = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    kept, faults = (int(word) for word in out.stdout.split())
    assert kept
    assert faults < 2000  # without it 20 tensors of 16 MB cost 78,000
