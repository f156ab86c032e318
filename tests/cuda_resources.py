"""What nvcc made of the CUDA kernels: registers, shared memory, spills, and how wide the loads are. No GPU is needed.

    python tests/cuda_resources.py fastdiff/libfastdiff_ops.so           compare with benchmarks/results/cuda/resources.csv
    python tests/cuda_resources.py fastdiff/libfastdiff_ops.so --write   write it: together with a row in benchmarks/LOG.md

Needs cuobjdump and nvdisasm (pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm) and c++filt. Fails on a spill, on local
memory, and on any difference from the table: a register more is a decision, a load that became scalar a mistake.
"""

from __future__ import annotations

import csv
import io
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

TABLE = Path(__file__).parent.parent / "benchmarks" / "results" / "cuda" / "resources.csv"
RESERVED = {"sm_90": 1024, "sm_90a": 1024}  # bytes of shared memory that the hardware takes for itself in each block
COLUMNS = (
    "kernel",
    "arch",
    "instances",
    "registers",
    "shared",
    "stack",
    "local",
    "wide loads",
    "wide copies",
    "wide stores",
    "mma",
)


@dataclass
class Function:
    """One instance of a kernel template on one architecture."""

    kernel: str
    arch: str
    registers: int = 0
    shared: int = 0
    stack: int = 0
    local: int = 0  # instructions that touch local memory
    wide_loads: int = 0  # of 16 bytes
    wide_copies: int = 0  # cp.async of 16 bytes
    wide_stores: int = 0
    mma: int = 0  # matrix products


def tool(name: str) -> str:
    """A CUDA tool: on the path, or where its PyPI package puts it."""
    packaged = Path(sys.prefix).glob(f"lib/python*/site-packages/nvidia/*/bin/{name}")
    found = shutil.which(name) or next(map(str, packaged), None)
    if found is None:
        sys.exit(f"{name} is missing: pip install nvidia-cuda-{name}")
    return found


def functions(library: Path) -> list[Function]:
    """All kernels in a library, for each architecture that it holds code for."""
    found: dict[tuple[str, str], Function] = {}
    arch = name = ""
    for line in _lines(tool("cuobjdump"), "--dump-resource-usage", str(library)):
        if match := re.search(r"arch = (sm_\w+)", line):
            arch = match[1]
        elif match := re.match(r"\s*Function (\w+):", line):
            name = match[1]
        elif match := re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", line):
            registers, stack, shared, local = map(int, match.groups())
            shared = max(shared - RESERVED.get(arch, 0), 0)
            found[arch, name] = Function("", arch, registers, shared, stack + local)
    for line in _lines(tool("cuobjdump"), "--dump-sass", str(library)):
        if match := re.search(r"arch = (sm_\w+)", line):
            arch = match[1]
        elif match := re.match(r"\s*Function : (\w+)", line):
            name = match[1]
        elif match := re.search(r"\b(LDG|LDGSTS|STG|LDL|STL|HMMA|HGMMA)\b([\w.]*)", line):
            function, (what, how) = found[arch, name], match.groups()
            function.local += what in ("LDL", "STL")
            function.wide_loads += what == "LDG" and "128" in how
            function.wide_copies += what == "LDGSTS" and "128" in how
            function.wide_stores += what == "STG" and "128" in how
            function.mma += what in ("HMMA", "HGMMA")
    names = sorted({name for _, name in found})
    plain = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True).stdout
    kernels = dict(zip(names, map(_kernel, plain.splitlines()), strict=True))
    for (_, name), function in found.items():
        function.kernel = kernels[name]
    return list(found.values())


def _kernel(demangled: str) -> str:
    """Name and arguments of a kernel without its template's: "apply(GroupNormSiluArgs)"."""
    name = re.sub(r"\(anonymous namespace\)::|^void |fastdiff::(cuda::)?", "", demangled)
    depth, kept = 0, []
    for c in name:
        depth += c == "<"
        if not depth:
            kept.append(c)
        depth -= c == ">"
    return "".join(kept)


def _lines(*command: str) -> Iterator[str]:
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield from process.stdout
    if process.returncode:
        sys.exit(f"{command[0]} failed with {process.returncode}")


def table(all_functions: list[Function]) -> str:
    """A line for each kernel and architecture: the most of any instance; how many have accesses of 16 bytes and products."""
    groups: dict[tuple[str, str], list[Function]] = {}
    for f in all_functions:
        groups.setdefault((f.kernel, f.arch), []).append(f)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for (kernel, arch), group in sorted(groups.items()):
        most = (max(getattr(f, key) for f in group) for key in ("registers", "shared", "stack", "local"))
        wide = (sum(bool(getattr(f, key)) for f in group) for key in ("wide_loads", "wide_copies", "wide_stores", "mma"))
        writer.writerow((kernel, arch, len(group), *most, *wide))
    return out.getvalue()


def main() -> None:
    library = next((Path(word) for word in sys.argv[1:] if not word.startswith("--")), None)
    if library is None or not library.is_file():
        sys.exit(f"usage: {sys.argv[0]} LIBRARY [--write]: a library built with FASTDIFF_BUILD=cuda")
    found = functions(library)
    if not found:
        sys.exit(f"{library} holds no CUDA kernels")
    spilled = sorted({f"{f.kernel} {f.arch}: stack {f.stack} bytes, accesses {f.local}" for f in found if f.stack or f.local})
    if spilled:
        sys.exit("registers are spilled:\n" + "\n".join(spilled))
    text = table(found)
    if "--write" in sys.argv:
        TABLE.write_text(text)
        print(f"{TABLE}: {len(found)} kernels")
        return
    before = TABLE.read_text().splitlines() if TABLE.exists() else []
    changed = sorted(set(before) ^ set(text.splitlines()))
    if changed:
        sys.exit("differs from benchmarks/results/cuda/resources.csv (--write, and a row in LOG.md):\n" + "\n".join(changed))
    print(f"{len(found)} kernels as in the table: no spills")


if __name__ == "__main__":
    main()
