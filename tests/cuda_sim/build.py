"""Compiles the CUDA kernels for the simulator: g++ alone, no CUDA, no GPU.

    python tests/cuda_sim/build.py [plain|thread|address] [--tree SOURCE_TREE] [--only film,...]

Objects and libraries are kept under fastdiff-cuda-sim-UID in the folder for temporary files: made once for each content
of what they are made of, removed when no build has used them for a week.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import hashlib
import os
import platform
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
CSRC = ROOT / "csrc"
FLAGS = {
    "plain": ["-O1"],
    "thread": ["-O1", "-g1", "-fsanitize=thread"],
    # Null and overflowing pointers meet AddressSanitizer where they are used, and to ask earlier doubles compiling.
    "address": [
        "-O1",
        "-g1",
        "-fsanitize=address,undefined",
        "-fno-sanitize=vptr,null,pointer-overflow",
        "-fno-sanitize-recover=undefined",
    ],
}
INCLUDE = re.compile(r"^#\s*include\s*[<\"]([^>\"]+)", re.MULTILINE)
DAYS_KEPT = 7
RUNTIME = {"thread": "libtsan.so", "address": "libasan.so"}  # what a process must load first
COMMON = ["-std=c++20", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-w", "-DFASTDIFF_CUDA", "-DFASTDIFF_SIMULATED"]


@functools.cache
def missing(variant: str = "plain") -> str | None:
    """Why this machine cannot build or run a variant, for the skip marks of tests; None where it can."""
    if platform.machine() != "x86_64" or platform.system() != "Linux":
        return "fibers are written for x86-64 Linux"
    for tool in ("g++", "nm", "objcopy"):
        if shutil.which(tool) is None:
            return f"needs {tool}"
    if variant == "plain":
        return None
    if not runtime(variant).is_absolute():
        return f"needs {RUNTIME[variant]}"
    # Containers may have setarch but not let it act.
    if shutil.which("setarch") is None or subprocess.run(["setarch", "-R", "true"], capture_output=True).returncode:
        return "needs setarch -R: sanitizers fail where addresses are random"
    return None


def runtime(variant: str) -> Path:
    """The sanitizer's library; a relative path where g++ has none."""
    command = ["g++", f"-print-file-name={RUNTIME[variant]}"]
    return Path(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip())


def build(variant: str, csrc: Path = CSRC, only: Sequence[str] | None = None) -> Path:
    """The shared library with the CUDA kernels of csrc under this sanitizer. RuntimeError with the compiler's words.

    only: the folders of csrc whose kernels it has; all without.
    """
    kernels = sorted(k for k in csrc.glob("*/cuda*.cu") if only is None or k.parent.name in only)
    folders = sorted({k.parent.name for k in kernels})
    if only is not None and folders != sorted(only):
        raise ValueError(f"no CUDA kernels in {sorted(set(only) - set(folders))}")
    return link(variant, [HERE / "library.cpp", *(csrc / f / "bind.cpp" for f in folders), *kernels], csrc)


def link(variant: str, sources: Sequence[Path], csrc: Path = CSRC) -> Path:
    """The shared library of these sources and the simulator."""
    store = Path(tempfile.gettempdir()) / f"fastdiff-cuda-sim-{os.getuid()}"
    store.mkdir(exist_ok=True)
    _forget_unused(store)

    def compiled(source: Path) -> Path:
        return _object(variant, source, csrc, store)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compiled, [HERE / "simulator.cpp", *sources]))
    folder = store / _digest([variant, *(o.name for o in objects)])
    library = folder / "libcuda_sim.so"
    if library.is_file():
        os.utime(folder)
        return library
    work = Path(tempfile.mkdtemp(dir=store))
    pages = ((work / f"{name}.s") for name in ("first", "last"))
    first, last = (_written(page, PAGE) for page in pages)  # around what the objects have in this section
    stubs = _written(work / "stubs.s", _stubs(objects))
    libraries = Path(torch.__file__).parent / "lib"
    sanitizer = [flag for flag in FLAGS[variant] if flag.startswith("-fsanitize=")]
    command = ["g++", "-shared", *sanitizer, *map(str, [first, *objects, stubs, last]), "-o", str(work / library.name)]
    _run([*command, f"-L{libraries}", f"-Wl,-rpath,{libraries}", "-ltorch", "-ltorch_cpu"])
    try:
        work.rename(folder)
    except OSError:  # another process was first: its library is the same
        shutil.rmtree(work)
    return library


def _forget_unused(store: Path) -> None:
    """Removes what no build has used for DAYS_KEPT days."""
    for made in store.iterdir():
        with contextlib.suppress(FileNotFoundError):  # by another process
            if time.time() - made.stat().st_mtime > DAYS_KEPT * 86400:
                shutil.rmtree(made) if made.is_dir() else made.unlink()


def _object(variant: str, source: Path, csrc: Path, store: Path) -> Path:
    """A source file compiled, or what an earlier build made of the same text."""
    # Sanitizers watch the kernels, not their scheduler.
    flags = [*COMMON, *(["-O2"] if source.stem == "simulator" else FLAGS[variant])]
    name = os.path.relpath(source, csrc.parent)  # so that reports and objects do not say where the tree lies
    folders = (HERE / "include", csrc)
    parts = [Path(__file__).read_bytes(), source.parent.name, source.name, *flags]
    parts += [part for text in _texts(source, folders) for part in (text.name, text.read_bytes())]
    out = store / f"{_digest(parts)}.o"
    if out.is_file():
        os.utime(out)
        return out
    unfinished = out.with_suffix(f".{os.getpid()}.o")
    command = ["g++", *flags, f"-fdebug-prefix-map={csrc.parent}=.", f"-I{folders[0]}", f"-I{csrc.name}"]
    _run([*command, "-x", "c++", "-c", name, "-o", str(unfinished)], csrc.parent)
    # All static variables of kernels are __shared__. They go where the simulator can make them new for each block; not under
    # AddressSanitizer, which keeps guards between them where they are. (GCC ignores a section attribute in templates.)
    if source.suffix == ".cu" and variant != "address":
        _run(["objcopy", "--rename-section", ".bss=cuda_shared,alloc,load,data,contents", str(unfinished)])
    return unfinished.replace(out)


def _texts(source: Path, folders: Sequence[Path]) -> list[Path]:
    """A source file and all of ours that it includes, however indirectly."""
    found, open_ = [source.resolve()], [source.resolve()]
    while open_:
        text = open_.pop()
        for name in INCLUDE.findall(text.read_text()):
            header = next((h.resolve() for h in (f / name for f in (text.parent, *folders)) if h.is_file()), None)
            if header and header not in found:
                found.append(header)
                open_.append(header)
    return found


def _digest(parts: Iterable[str | bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()[:16]


PAGE = '.section cuda_shared, "aw"\n.balign 4096\n.zero 4096\n'


def _written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def _stubs(objects: list[Path]) -> str:
    """The CPU kernels and instruction sets that bind.cpp names: nothing calls them here, but their addresses are taken."""
    out = subprocess.run(["nm", "-u", *map(str, objects)], capture_output=True, text=True, check=True).stdout
    names = sorted(set(re.findall(r"\b_ZN8fastdiff(?:8baseline|\d+cpu_)\w+", out)))
    return ".text\n" + "".join(f".globl {n}\n.type {n}, @function\n{n}: ud2\n" for n in names)


def _run(command: list[str], folder: Path | None = None) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr[-4000:]}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("variant", nargs="?", choices=FLAGS, default="plain")
    parser.add_argument("--tree", type=Path, default=ROOT)
    parser.add_argument("--only", type=lambda text: text.split(","))
    args = parser.parse_args()
    print(build(args.variant, args.tree.resolve() / "csrc", args.only))
