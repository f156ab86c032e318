"""Bugs planted in the real kernels are found, each by the finder that is there for it; see README.md.

planted/*.patch are unified diffs against csrc. One of them, narrow.patch, is no bug: it leaves only the types that are called
here, for builds of a second, and every build has it.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from cuda_sim.build import CSRC, HERE, missing
from cuda_sim.sanitizers import run

PLANTED = HERE / "planted"
NARROW = PLANTED / "narrow.patch"
# Small, whole and ragged; a row and several chunks; one block and several.
CALLS = ("--dtypes", "float32", "--samples", "^(nchw|channels_last wide|images|ragged)$")

# patch: (variant, folder of csrc, what is said, as a regular expression)
BUGS = {
    "barrier_after_writing": (
        "thread",
        "film",
        r"ThreadSanitizer: data race csrc/film/../common/cuda_device.h:\d+ in .*block_sum",
    ),
    "barrier_before_writing": (
        "thread",
        "film",
        r"ThreadSanitizer: data race csrc/film/../common/cuda_device.h:\d+ in .*block_sum",
    ),
    "blocks_share_a_place": ("thread", "film", r"ThreadSanitizer: data race csrc/film/cuda.cu:\d+ in film_backward_chunks"),
    "shared_out_of_bounds": (
        "address",
        "film",
        r"cuda_device.h:\d+:\d+: runtime error: store to address \w+ with insufficient space",
    ),
    "global_out_of_bounds": (
        "address",
        "film",
        r"AddressSanitizer: heap-buffer-overflow csrc/film/cuda.cu:\d+ in .*film_kernel",
    ),
    "ragged_store": (
        "address",
        "philox_normal",
        r"AddressSanitizer: heap-buffer-overflow csrc/philox_normal/cuda.cu:\d+ in .*philox_normal_kernel",
    ),
    "misaligned": (
        "address",
        "philox_normal",
        r"csrc/philox_normal/cuda.cu:\d+:\d+: runtime error: store to misaligned address",
    ),
    "exited_lane": ("plain", "film", r"a warp operation waits for lane \d+, which has exited"),
    "barrier_that_some_skip": ("plain", "film", r"block 0 hangs: 8 threads wait at __syncthreads, 0 have exited, 248 wait"),
    "shared_never_written": ("plain", "film", r"film_backward \[nchw\].*output 1: inf is above"),
    "ragged_chunk": ("plain", "film", r"film_backward \[channels_last wide\].*output 1: \S+ is above"),
}


def can(variant: str) -> pytest.MarkDecorator:
    reason = missing(variant) or (None if shutil.which("patch") else "needs patch")
    return pytest.mark.skipif(reason is not None, reason=str(reason))


@pytest.fixture
def csrc(tmp_path: Path) -> Path:
    """A copy of the kernels, of the types that are called."""
    copy = shutil.copytree(CSRC, tmp_path / "csrc")
    apply(NARROW, copy)
    return copy


def apply(patch: Path, csrc: Path) -> None:
    done = subprocess.run(["patch", "-p1", "--fuzz=0", "-i", str(patch)], cwd=csrc, capture_output=True, text=True)
    assert done.returncode == 0, f"{patch.name} no longer fits the kernels: {done.stdout}{done.stderr}"


def test_each_patch_has_its_row() -> None:
    assert sorted(p.stem for p in PLANTED.glob("*.patch")) == sorted([*BUGS, NARROW.stem])


@pytest.mark.parametrize("bug", [pytest.param(bug, marks=can(variant)) for bug, (variant, *_) in BUGS.items()])
def test_a_planted_bug_is_found(bug: str, csrc: Path) -> None:
    variant, folder, said = BUGS[bug]
    apply(PLANTED / f"{bug}.patch", csrc)
    code, output = run(variant, *CALLS, csrc=csrc, only=[folder])
    assert code != 0, output
    assert re.search(said, output), output


@pytest.mark.parametrize("variant", [pytest.param(v, marks=can(v)) for v in ("plain", "thread", "address")])
def test_nothing_is_found_without_one(variant: str, csrc: Path) -> None:
    """The same calls: what is found above is due to its patch."""
    folders = sorted({folder for v, folder, _ in BUGS.values() if v == variant})
    code, output = run(variant, *CALLS, csrc=csrc, only=folders)
    assert code == 0, output
    assert re.fullmatch(r"[1-9]\d* calls are right\n", output), output
