"""calls.py in a process of its own, where a sanitizer can be loaded before Python is."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from cuda_sim.build import CSRC, HERE, build, runtime

OPTIONS = {
    # torch's own threads and memory are not what is asked about.
    "thread": {"TSAN_OPTIONS": "ignore_noninstrumented_modules=1 report_signal_unsafe=0"},
    # A leak of Python's is none of ours, and stacks made for a check of returned frames would not be the fibers'.
    "address": {"ASAN_OPTIONS": "detect_leaks=0 detect_stack_use_after_return=0"},
}


def run(variant: str, *options: str, csrc: Path = CSRC, only: Sequence[str] | None = None) -> tuple[int, str]:
    """calls.py with these options on a build of csrc: the exit code, not 0 where something was reported, and all it wrote."""
    command = [sys.executable, "-P", str(HERE / "calls.py"), str(build(variant, csrc, only)), *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if variant != "plain":
        command = ["setarch", "-R", *command]
        environment |= {"PYTHONMALLOC": "malloc", "LD_PRELOAD": str(runtime(variant)), **OPTIONS[variant]}
    out = subprocess.PIPE
    done = subprocess.run(
        command, env=environment, stdout=out, stderr=subprocess.STDOUT, text=True, timeout=900, errors="replace"
    )
    return done.returncode, done.stdout
