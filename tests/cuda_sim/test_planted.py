"""Bugs planted in the real kernels are found, each by the finder that is there for it; see README.md.

planted/*.patch are unified diffs against csrc. One of them, narrow.patch, is no bug: it leaves only the types that are called
here, for builds of a second, and every build has it.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest
from cuda_sim.build import CSRC, HERE, build, missing
from cuda_sim.sanitizers import run

PLANTED = HERE / "planted"
# Small, whole and ragged; a row and several chunks; one block and several; off an aligned address.
SAMPLES = (
    "^(nchw|channels_last wide|images|ragged|off an aligned address|batch 1|more than a block keeps|"
    "uneven bundles of groups channels_last|all of it|ragged channels|leaky)$"
)
CALLS = ("--dtypes", "float32", "--samples", SAMPLES)


class Bug(NamedTuple):
    variant: str
    folder: str  # of csrc
    said: str  # a regular expression


BUGS = {
    "barrier_after_writing": Bug(
        "thread",
        "film",
        r"ThreadSanitizer: data race csrc/film/../common/cuda_device.h:\d+ in .*block_sum",
    ),
    "barrier_before_writing": Bug(
        "thread",
        "film",
        r"ThreadSanitizer: data race csrc/film/../common/cuda_device.h:\d+ in .*block_sum",
    ),
    "blocks_share_a_place": Bug("thread", "film", r"ThreadSanitizer: data race csrc/film/cuda.cu:\d+ in film_backward_chunks"),
    "shared_out_of_bounds": Bug(
        "address",
        "film",
        r"cuda_device.h:\d+:\d+: runtime error: store to address \w+ with insufficient space",
    ),
    "global_out_of_bounds": Bug(
        "address",
        "film",
        r"AddressSanitizer: heap-buffer-overflow csrc/film/cuda.cu:\d+ in .*film_kernel",
    ),
    "ragged_store": Bug(
        "plain",
        "philox_normal",
        r"philox_normal \[ragged\].*output 0: \S+ is above",
    ),
    "misaligned": Bug(
        "address",
        "film",
        r"csrc/film/cuda.cu:\d+:\d+: runtime error: reference binding to misaligned address",
    ),
    "exited_lane": Bug("plain", "film", r"a warp operation waits for lane \d+, which has exited"),
    "barrier_that_some_skip": Bug("plain", "film", r"block 0 hangs: 8 threads wait at __syncthreads, 0 have exited, 248 wait"),
    "shared_never_written": Bug("plain", "film", r"film_backward \[nchw\].*output 1: inf is above"),
    "copy_not_awaited": Bug("plain", "group_norm_silu", r"group_norm_silu \[nchw\].*output 0: inf is above"),
    "copies_of_other_threads": Bug(
        "thread",
        "group_norm_silu",
        r"ThreadSanitizer: data race csrc/group_norm_silu/cuda_backward_one_pass.cu:\d+ in backward_one_pass",
    ),
    "sum_read_too_early": Bug(
        "thread",
        "group_norm_silu",
        r"ThreadSanitizer: data race csrc/group_norm_silu/cuda_one_pass.h:\d+ in .*sum_pixels",
    ),
    "chunks_share_moments": Bug(
        "thread",
        "group_norm_silu",
        r"ThreadSanitizer: data race csrc/group_norm_silu/cuda.cu:\d+ in write_moments",
    ),
    "dynamic_shared_out_of_bounds": Bug(
        "address",
        "group_norm_silu",
        r"AddressSanitizer: heap-buffer-overflow csrc/group_norm_silu/cuda_one_pass.cu:\d+ in .*one_pass",
    ),
    "uneven_bundle": Bug(
        "address",
        "group_norm_silu",
        r"AddressSanitizer: heap-buffer-overflow csrc/group_norm_silu/../common/cuda_device.h:\d+ in .*element",
    ),
    "operands_not_awaited": Bug(
        "thread",
        "conv2d_fused",
        r"ThreadSanitizer: data race csrc/conv2d_fused/cuda_\w+.h:\d+ in .*(multiply|transform)",
    ),
    "next_tile_too_early": Bug(
        "thread",
        "conv2d_fused",
        r"ThreadSanitizer: data race csrc/conv2d_fused/cuda.cu:\d+ in .*activate_in",
    ),
    "one_copy_too_few": Bug("plain", "conv2d_fused", r"conv2d_fused \[all of it\].*output 0: \S+ is above"),
    "past_the_border": Bug("plain", "conv2d_fused", r"conv2d_fused \[all of it\].*output 0: \S+ is above"),
    "element_of_the_kernel": Bug("plain", "conv2d_fused", r"conv2d_fused \[all of it\].*output 0: \S+ is above"),
    "ragged_channels": Bug(
        "address",
        "conv2d_fused",
        r"AddressSanitizer: heap-buffer-overflow csrc/conv2d_fused/cuda.cu:\d+ in .*store_elements",
    ),
    "ragged_chunk": Bug("plain", "film", r"film_backward \[channels_last wide\].*output 1: \S+ is above"),
}


def apply(patch: Path, csrc: Path) -> None:
    done = subprocess.run(["patch", "-p1", "--fuzz=0", "-i", str(patch)], cwd=csrc, capture_output=True, text=True)
    assert done.returncode == 0, f"{patch.name} no longer fits the kernels: {done.stdout}{done.stderr}"


def test_each_patch_has_its_row() -> None:
    assert sorted(p.stem for p in PLANTED.glob("*.patch")) == sorted([*BUGS, "narrow"])


def can(variant: str) -> pytest.MarkDecorator:
    reason = missing(variant) or (None if shutil.which("patch") else "needs patch")
    return pytest.mark.skipif(reason is not None, reason=str(reason))


@pytest.mark.parametrize("variant", [pytest.param(v, marks=can(v)) for v in ("plain", "thread", "address")])
def test_planted_bugs_are_found(variant: str, tmp_path: Path) -> None:
    """One process makes the same calls to the kernels as they are, where nothing is found, and with each of the bugs."""
    bugs = {bug: row for bug, row in BUGS.items() if row.variant == variant}

    def compiled(name: str, folders: list[str], *patches: str) -> Path:
        csrc = shutil.copytree(CSRC, tmp_path / name / "csrc")
        for patch in ("narrow", *patches):
            apply(PLANTED / f"{patch}.patch", csrc)
        return build(variant, csrc, folders)

    libraries = [compiled("unchanged", sorted({row.folder for row in bugs.values()}))]
    libraries += [compiled(bug, [row.folder], bug) for bug, row in bugs.items()]
    (code, output), *results = run(variant, libraries, *CALLS)
    assert code == 0, output
    assert re.fullmatch(r"[1-9]\d* calls are right\n", output), output
    for (bug, row), (code, output) in zip(bugs.items(), results, strict=True):
        assert code != 0, f"{bug}: {output}"
        assert re.search(row.said, output), f"{bug}: {output}"
