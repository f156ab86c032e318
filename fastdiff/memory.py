"""Keeping freed memory in the process, which training and sampling on the CPU gain from.

glibc gives the memory of large tensors back to the system when they are freed, and the next step pays a page fault for every
four kilobytes that it writes. A training step allocates the same tensors over and over.
"""

from __future__ import annotations

import ctypes
import sys

# malloc.h
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
_LARGEST_MAPPED = (1 << 30, 1 << 25)  # tensors below it come from the heap; older glibc takes no more than 32 MB
_NEVER = (1 << 31) - 1


def keep_freed_memory() -> bool:
    """Let the C allocator keep what is freed, up to the process's peak, for the rest of the process.

    Meant for programs that train or sample, as the command line does. Returns False, and changes nothing, where the C library
    is not glibc or refuses. Memory that CUDA tensors take is not concerned.
    """
    libc = ctypes.CDLL(None) if sys.platform.startswith("linux") else None
    if not hasattr(libc, "gnu_get_libc_version"):
        return False
    if not any(libc.mallopt(_M_MMAP_THRESHOLD, size) for size in _LARGEST_MAPPED):
        return False
    return bool(libc.mallopt(_M_TRIM_THRESHOLD, _NEVER)) and bool(libc.mallopt(_M_TOP_PAD, 1 << 26))
