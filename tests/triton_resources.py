"""What attention's Triton kernels take of a GPU, compiled for it without one: `python tests/triton_resources.py`.

The kernels are compiled as a call with contiguous tensors compiles them: strides and pointers divisible by 16, the last stride
1. Without those facts there would be no asynchronous copies. Registers and spills are what ptxas says of the PTX.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from fastdiff.ops._attention_triton import backward_kernels, forward_kernel, tilings

CAPABILITIES, HEADS, DTYPES = (80, 90), (64, 128), (torch.bfloat16,)
SHARED_LIMIT = {80: 163 << 10, 90: 227 << 10}  # bytes that one program may have: CUDA C++ programming guide, table 27
_FLOAT32 = ("logsumexp", "delta")
_NAMES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
_PTXAS = Path(triton.__file__).parent / "backends/nvidia/bin/ptxas"


@dataclass(frozen=True)
class Resources:
    kernel: str
    dtype: str
    head: int
    capability: int
    tiling: Any
    registers: int  # of a thread
    shared: int  # bytes of a program
    spilled: int  # bytes of stores and loads of a thread
    instructions: str


KERNELS = {
    "forward": forward_kernel.forward_kernel,
    "delta": backward_kernels.delta_kernel,
    "dkdv": backward_kernels.dkdv_kernel,
    "dq": backward_kernels.dq_kernel,
}


def compiled(
    name: str, head: int, capability: int, dtype: torch.dtype = torch.bfloat16, tiling: Any = None, mask: int = 0
) -> Resources:
    """One kernel; tiling: other than the one that is chosen for it. mask: 0 none, 1 boolean, 2 added."""
    function = KERNELS[name]
    tiling = tiling or tilings.tilings(head, dtype, mask != 0)[name]
    known = {"HEAD": head, "PADDED": tilings.padded(head), "MASK": mask, "QUERIES": tiling.queries, "KEYS": tiling.keys}
    constants = {a: known.get(a, 1) for a in function.arg_names if a in known or re.fullmatch(r"s\w+_d|sm_s", a)}
    signature = {a: "constexpr" if a in constants else _type(a, dtype, mask) for a in function.arg_names}
    aligned = [a for a, kind in signature.items() if kind.startswith("*") or re.fullmatch(r"s\w+_[nhl]", a)]
    source = ASTSource(
        fn=function,
        signature=signature,
        constexprs=constants,
        attrs={(function.arg_names.index(a),): [["tt.divisibility", 16]] for a in aligned},
    )
    options = {"num_warps": tiling.warps, "num_stages": tiling.stages}
    binary = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    registers, spilled = _assembled(binary.asm["ptx"], capability)
    kinds = ("wgmma.mma_async", "mma.sync", "cp.async", "ex2.approx")
    found = " ".join(kind for kind in kinds if re.search(rf"\b{re.escape(kind)}", binary.asm["ptx"]))
    return Resources(name, _NAMES[dtype], head, capability, tiling, registers, binary.metadata.shared, spilled, found)


def _type(argument: str, dtype: torch.dtype, mask: int) -> str:
    if argument in _FLOAT32:
        return "*fp32"
    if argument == "mask":
        return "*u8" if mask == 1 else f"*{_NAMES[dtype]}"
    if argument in ("scale", "scale_log2"):
        return "fp32"
    if argument in ("heads", "queries", "keys") or re.match(r"s\w+_", argument):
        return "i32"
    return f"*{_NAMES[dtype]}"


def _assembled(ptx: str, capability: int) -> tuple[int, int]:
    """Registers of a thread, and bytes that it stores to and loads from memory for want of them."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.ptx"
        path.write_text(ptx)
        target = re.search(r"^\.target (\w+)", ptx, re.MULTILINE)[1]
        command = [_PTXAS, "-v", f"--gpu-name={target}", path, "-o", Path(folder) / "kernel.cubin"]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    stores, loads = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", said).groups()
    return int(re.search(r"Used (\d+) registers", said)[1]), int(stores) + int(loads)


def measured() -> Iterator[Resources]:
    for capability in CAPABILITIES:
        for dtype in DTYPES:
            for head in HEADS:
                for name in KERNELS:
                    yield compiled(name, head, capability, dtype)


def main() -> None:
    print(f"triton {triton.__version__}, {_PTXAS.name} of its wheel")
    print(f"{'':7}{'kernel':9}{'type':6}{'head':>5}{'queries':>9}{'keys':>6}{'warps':>7}{'stages':>8}", end="")
    print(f"{'registers':>11}{'shared KiB':>12}{'spilled B':>11}  instructions")
    for r in measured():
        print(f"sm_{r.capability:<4}{r.kernel:9}{r.dtype:6}{r.head:5}", end="")
        print("".join(f"{v:{w}}" for v, w in zip(r.tiling, (9, 6, 7, 8), strict=True)), end="")
        print(f"{r.registers:11}{r.shared / 1024:12.1f}{r.spilled:11}  {r.instructions}")


if __name__ == "__main__":
    sys.exit(main())
