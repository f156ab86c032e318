"""Compiles the CUDA kernels for the simulator: g++ alone, no CUDA, no GPU.

    python tests/cuda_sim/build.py [plain|thread|address] [source tree]

A variant is compiled once for each content of its sources, under build/cuda_sim in the system's folder for temporary files.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
FLAGS = {
    "plain": ["-O1"],
    "thread": ["-O1", "-g", "-fsanitize=thread"],
    "address": ["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize=vptr", "-fno-sanitize-recover=undefined"],
}
COMMON = ["-std=c++20", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-w", "-DFASTDIFF_CUDA", "-DFASTDIFF_SIMULATED"]


def build(variant: str, csrc: Path = ROOT / "csrc") -> Path:
    """The shared library with every CUDA kernel of csrc under this sanitizer. RuntimeError with the compiler's words."""
    kernels = sorted(csrc.glob("*/cuda*.cu"))
    binds = [csrc / name / "bind.cpp" for name in sorted({k.parent.name for k in kernels})]
    sources = sorted(p for p in [*csrc.rglob("*"), *HERE.rglob("*")] if p.suffix in (".h", ".cpp", ".cu", ".py"))
    digest = hashlib.sha256("".join([variant, *FLAGS[variant]]).encode())
    for source in sources:
        digest.update(
            source.relative_to(csrc if source.is_relative_to(csrc) else HERE).as_posix().encode() + source.read_bytes()
        )
    folder = Path(tempfile.gettempdir()) / f"fastdiff-cuda-sim-{os.getuid()}" / digest.hexdigest()[:16]
    library = folder / "libcuda_sim.so"
    if library.is_file():
        return library
    work = folder.with_name(f"{folder.name}.{os.getpid()}")
    work.mkdir(parents=True, exist_ok=True)

    includes = [f"-I{HERE / 'include'}", f"-I{csrc}"]
    sanitized = [*COMMON, *includes, *FLAGS[variant]]
    jobs = [(HERE / "simulator.cpp", [*COMMON, *includes, "-O2"])]  # sanitizers watch the kernels, not their scheduler
    jobs += [(source, sanitized) for source in (HERE / "library.cpp", *binds, *kernels)]
    objects = [work / f"{source.parent.name}_{source.stem}.o" for source, _ in jobs]
    commands = [
        ["g++", *flags, "-x", "c++", "-c", str(source), "-o", str(out)]
        for (source, flags), out in zip(jobs, objects, strict=True)
    ]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(_run, commands))
    # All static variables of kernels are __shared__. They go where the simulator can make them new for each block; not under
    # AddressSanitizer, which keeps guards between them where they are. (GCC ignores a section attribute in templates.)
    if variant != "address":
        for kernel in objects[-len(kernels) :]:
            _run(["objcopy", "--rename-section", ".bss=cuda_shared,alloc,load,data,contents", str(kernel)])
    pages = ((work / f"{name}.s") for name in ("first", "last"))
    first, last = (_written(page, PAGE) for page in pages)  # around what the objects have in this section
    stubs = _written(work / "stubs.s", _stubs(objects))
    libraries = Path(torch.__file__).parent / "lib"
    sanitizer = [flag for flag in FLAGS[variant] if flag.startswith("-fsanitize=")]
    link = ["g++", "-shared", *sanitizer, *map(str, [first, *objects, stubs, last]), "-o", str(work / library.name)]
    _run([*link, f"-L{libraries}", f"-Wl,-rpath,{libraries}", "-ltorch", "-ltorch_cpu"])
    shutil.rmtree(folder, ignore_errors=True)
    work.rename(folder)
    return library


PAGE = '.section cuda_shared, "aw"\n.balign 4096\n.zero 4096\n'


def _written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def _stubs(objects: list[Path]) -> str:
    """The CPU kernels that bind.cpp names: nothing calls them here, but their addresses are taken."""
    out = subprocess.run(["nm", "-u", *map(str, objects)], capture_output=True, text=True, check=True).stdout
    names = sorted({line.split()[-1] for line in out.splitlines() if "8fastdiff8baseline" in line})
    return ".text\n" + "".join(f".globl {n}\n.type {n}, @function\n{n}: ud2\n" for n in names)


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr[-4000:]}")


if __name__ == "__main__":
    print(build(sys.argv[1] if len(sys.argv) > 1 else "plain", *(Path(p) / "csrc" for p in sys.argv[2:3])))
