"""What Triton makes of attention's kernels: registers, shared memory, spills, instructions. No GPU is needed.

    python tests/triton_resources.py           compare with benchmarks/results/triton/resources.csv
    python tests/triton_resources.py --write   write it: together with a row in benchmarks/LOG.md

The kernels are compiled as a call with contiguous tensors compiles them: strides and pointers divisible by 16, the last stride
1. Without those facts there would be no asynchronous copies. Registers and spills are what ptxas says of the PTX. Fails on a
spill, on more shared memory than a program may have, and, with the Triton that wrote the table, on any difference from it;
another version counts registers differently.
"""

from __future__ import annotations

import csv
import io
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from fastdiff.ops._attention_triton import backward_kernels, forward_kernel, tilings

TABLE = Path(__file__).parent.parent / "benchmarks" / "results" / "triton" / "resources.csv"
SHARED_LIMIT = {80: 163 << 10, 90: 227 << 10}  # bytes that one program may have: CUDA C++ programming guide, table 27
KERNELS = {
    "forward": forward_kernel.forward_kernel,
    "delta": backward_kernels.delta_kernel,
    "dkdv": backward_kernels.dkdv_kernel,
    "dq": backward_kernels.dq_kernel,
}
MASKS = ("none", "bool", "added")
HEADS = (8, 32, 40, 64, 80, 128, 160, 256)
COLUMNS = ("triton", "kernel", "dtype", "head", "mask", "capability", "queries", "keys", "warps", "stages", "registers",
           "shared", "spilled", "instructions")  # fmt: skip
_INSTRUCTIONS = ("wgmma.mma_async", "mma.sync", "cp.async.bulk", "cp.async", "ex2.approx")
_NAMES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
_PTXAS = Path(triton.__file__).parent / "backends/nvidia/bin/ptxas"


@dataclass(frozen=True)
class Case:
    """A kernel as it is compiled; its tiling is chosen by these."""

    kernel: str
    dtype: str
    head: int
    mask: str
    capability: int


@dataclass(frozen=True)
class Resources:
    registers: int  # of a thread
    shared: int  # bytes of a program
    spilled: int  # bytes of stores and loads of a thread
    instructions: str

    def wrong(self, case: Case) -> str:
        """What no kernel may do; "" where it does not."""
        if self.spilled:
            return f"{self.spilled} bytes of spills, {self.registers} registers"
        too_much = self.shared > SHARED_LIMIT[case.capability]
        return f"{self.shared} bytes of shared memory of {SHARED_LIMIT[case.capability]}" if too_much else ""


def cases() -> Iterator[Case]:
    """All rows of the table. fp16 differs from bf16 in conversions alone, and delta knows no mask."""
    for dtype, head, mask, capability, kernel in product(_NAMES, HEADS, MASKS, SHARED_LIMIT, KERNELS):
        if mask == "none" or (dtype != "fp16" and kernel != "delta"):
            yield Case(kernel, dtype, head, mask, capability)


def tiling_of(case: Case) -> Any:
    return tilings.tilings(case.head, _NAMES[case.dtype], case.mask != "none")[case.kernel]


def compiled(case: Case, tiling: Any = None) -> Resources:
    """tiling: other than the one that is chosen."""
    function, tiling = KERNELS[case.kernel], tiling or tiling_of(case)
    known = {
        **{"HEAD": case.head, "PADDED": tilings.padded(case.head), "MASK": MASKS.index(case.mask)},
        **{"QUERIES": tiling.queries, "KEYS": tiling.keys},
    }
    constants = {a: known.get(a, 1) for a in function.arg_names if a in known or re.fullmatch(r"s\w+_d|sm_s", a)}
    signature = {a: "constexpr" if a in constants else _type(a, case) for a in function.arg_names}
    aligned = [a for a, kind in signature.items() if kind.startswith("*") or re.fullmatch(r"s\w+_[nhl]", a)]
    source = ASTSource(
        fn=function,
        signature=signature,
        constexprs=constants,
        attrs={(function.arg_names.index(a),): [["tt.divisibility", 16]] for a in aligned},
    )
    options = {"num_warps": tiling.warps, "num_stages": tiling.stages}
    binary = triton.compile(source, target=GPUTarget("cuda", case.capability, 32), options=options)
    ptx = binary.asm["ptx"]
    registers, spilled = _assembled(ptx)
    found = " ".join(kind for kind in _INSTRUCTIONS if re.search(rf"\b{re.escape(kind)}\b(?!\.bulk)", ptx))
    return Resources(registers, binary.metadata.shared, spilled, found)


def _type(argument: str, case: Case) -> str:
    if argument in ("logsumexp", "delta"):
        return "*fp32"
    if argument == "mask" and case.mask == "bool":
        return "*u8"
    if argument in ("scale", "scale_log2"):
        return "fp32"
    if argument in ("heads", "queries", "keys") or re.match(r"s\w+_", argument):
        return "i32"
    return f"*{case.dtype}"


def _assembled(ptx: str) -> tuple[int, int]:
    """Registers of a thread, and bytes that it stores to and loads from memory for want of them."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.ptx"
        path.write_text(ptx)
        target = re.search(r"^\.target (\w+)", ptx, re.MULTILINE)[1]
        command = [_PTXAS, "-v", f"--gpu-name={target}", path, "-o", Path(folder) / "kernel.cubin"]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    stores, loads = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", said).groups()
    return int(re.search(r"Used (\d+) registers", said)[1]), int(stores) + int(loads)


def row(case: Case, r: Resources) -> dict[str, str]:
    values = (triton.__version__, *vars(case).values(), *tiling_of(case), *vars(r).values())
    return dict(zip(COLUMNS, map(str, values), strict=True))


def committed() -> dict[Case, dict[str, str]]:
    """The table's rows by their cases."""
    with TABLE.open() as file:
        rows = list(csv.DictReader(file))
    return {Case(r["kernel"], r["dtype"], int(r["head"]), r["mask"], int(r["capability"])): r for r in rows}


def compare(case: Case, r: Resources, table: dict[Case, dict[str, str]]) -> str:
    """What is wrong with a kernel, by itself or beside its row; "" where nothing is."""
    if wrong := r.wrong(case):
        return wrong
    if case not in table:
        return "no row in the table"
    now, before = row(case, r), table[case]
    if before["triton"] != triton.__version__:
        return ""
    return ", ".join(f"{key} {now[key]}, in the table {before[key]}" for key in COLUMNS if now[key] != before[key])


def write(rows: Iterable[dict[str, str]]) -> None:
    out = io.StringIO()
    writer = csv.DictWriter(out, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    TABLE.parent.mkdir(parents=True, exist_ok=True)
    TABLE.write_text(out.getvalue())


def main() -> None:
    writing = "--write" in sys.argv
    table = {} if writing else committed()
    rows, wrong = [], []
    for case in cases():
        r = compiled(case)
        rows.append(row(case, r))
        if problem := r.wrong(case) if writing else compare(case, r, table):
            wrong.append(f"{case}: {problem}")
            print(wrong[-1], flush=True)
    if not writing and (gone := set(table) - set(cases())):
        wrong.append(f"rows of no kernel: {gone}")
    if wrong:
        sys.exit(
            f"{len(wrong)} of {len(rows)} kernels (--write, and a row in LOG.md, where they are meant):\n" + "\n".join(wrong)
        )
    if writing:
        write(rows)
    most = max(int(r["registers"]) for r in rows)
    print(f"triton {triton.__version__}: {len(rows)} kernels, no spills, at most {most} registers")


if __name__ == "__main__":
    main()
