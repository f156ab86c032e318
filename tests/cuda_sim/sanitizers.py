"""calls.py in a process of its own, where a sanitizer can be loaded before Python is."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from cuda_sim.build import HERE, runtime

OPTIONS = {
    # torch's own threads and memory are not what is asked about.
    "thread": {"TSAN_OPTIONS": "ignore_noninstrumented_modules=1 report_signal_unsafe=0"},
    # A leak of Python's is none of ours, and stacks made for a check of returned frames would not be the fibers'.
    "address": {"ASAN_OPTIONS": "detect_leaks=0 detect_stack_use_after_return=0"},
}


def run(variant: str, libraries: Sequence[Path], *options: str) -> list[tuple[int, str]]:
    """calls.py with these options on what `build` made: for each library its exit code and all that was written.

    The code is not 0 where a call failed or something was reported.
    """
    command = [sys.executable, "-P", str(HERE / "calls.py"), *map(str, libraries), *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if variant != "plain":
        command = ["setarch", "-R", *command]
        environment |= {"PYTHONMALLOC": "malloc", "LD_PRELOAD": str(runtime(variant)), **OPTIONS[variant]}
    out = subprocess.PIPE
    done = subprocess.run(
        command, env=environment, stdout=out, stderr=subprocess.STDOUT, text=True, timeout=900, errors="replace"
    )
    if len(libraries) == 1:
        return [(done.returncode, done.stdout)]
    results, rest = [], done.stdout
    for library in libraries:
        output, ended, rest = rest.partition(f"{library} ended with ")
        assert ended, f"{library} has no end: {output}"
        code, _, rest = rest.partition("\n")
        results.append((int(code), output))
    return results
