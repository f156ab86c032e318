"""Times every op on a GPU against torch: `python benchmarks/gpu_ops.py --out FILE.csv [--seconds 150] [--device cuda]`.

Beside fastdiff: plain torch (`rivals.py`) eager in both memory formats and compiled with max-autotune, and a copy of the first
tensor. Backward is autograd's, over one forward that was kept. The ceilings come first and are measured in the same process:
a copy from one gigabyte to another, and a product of two large bf16 matrices. A row is written at once, and only for values
that passed the gate against float64. The largest share of the time is compiling: past three quarters of --seconds nothing is
compiled any more, and past all of them nothing is timed.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import math
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch._functorch.config
from gate import backward
from gpu_cases import Args, Case, cases
from record import measured_on
from rivals import rival
from run import COLUMNS as OP_COLUMNS
from run import FORMATS, converted, first_floating, forward
from timing import Timing, interleaved

from fastdiff.ops._oracle import as_tuple, error_and_bound, errors_and_bounds, in_float64

COLUMNS = (*OP_COLUMNS, "flops", "gb_per_s", "tflop_per_s", "of_ceiling")
COMPILE_MODE = "max-autotune-no-cudagraphs"  # launches are queued for all variants alike, see timing.py


class Table:
    """Rows of a CSV file, each of which is on the disk once it is written."""

    def __init__(self, path: Path, columns: tuple[str, ...]) -> None:
        self._file = path.open("w", newline="")
        self._writer = csv.DictWriter(self._file, columns)
        self._writer.writeheader()

    def write(self, row: Mapping[str, Any]) -> None:
        self._writer.writerow(row)
        self._file.flush()


def rate(size: float, t: Timing) -> float:
    return size / t.median


def ceilings(device: str, tiny: bool) -> dict[str, tuple[float, Timing]]:
    """Bytes of a copy and operations of a product, and their times."""

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, device=device, dtype=torch.bfloat16)

    length, size = (1 << 16, 64) if tiny else (1 << 29, 8192)
    source, a, b = drawn(length), drawn(size, size), drawn(size, size)
    target = torch.empty_like(source)
    copy = interleaved({"copy": lambda: target.copy_(source)}, 11, device)["copy"]
    product = interleaved({"product": lambda: a @ b}, 11, device)["product"]
    return {"copy": (2 * 2 * length, copy), "product": (2 * size**3, product)}


def gradient_errors(op: Any, args: Args) -> list[tuple[float, float]]:
    """`error_and_bound` of the gradients of the op's first output."""

    def gradients(function: Callable[..., Any], of: Args) -> tuple[torch.Tensor | None, ...]:
        torch.manual_seed(0)
        leaves = [a.detach().requires_grad_() if _is_float(a) else a for a in of]
        y = as_tuple(function(*leaves))[0]
        seed = torch.randn(y.shape, device=y.device).to(y.dtype)
        return torch.autograd.grad(y, [a for a in leaves if _is_float(a)], seed, allow_unused=True)

    found = (gradients(op, args), gradients(op.plain, args), gradients(op.reference, in_float64(args)))
    return [error_and_bound(*g, max(op.floor, 1e-6)) for g in zip(*found, strict=True) if g[0] is not None]


def _is_float(a: Any) -> bool:
    return isinstance(a, torch.Tensor) and a.is_floating_point()


def traffic(case: Case, args: Args) -> int:
    """Bytes that must move at least: every input read once, every output written once; of a derivative all gradients too."""
    given = [a for a in args if isinstance(a, torch.Tensor)]
    outputs = [o for o in as_tuple(case.op(*args)) if isinstance(o, torch.Tensor)]
    size = sum(t.nbytes for t in given)
    if case.backward:
        return size + outputs[0].nbytes + sum(t.nbytes for t in given if t.is_floating_point())
    return size + sum(t.nbytes for t in outputs)


def sets_needed(size: int, device: str) -> int:
    """Sets of arguments in turn, so that a call finds nothing of its own in the cache."""
    if torch.device(device).type != "cuda":
        return 2
    cache = getattr(torch.cuda.get_device_properties(0), "L2_cache_size", 50 << 20)
    return max(1, min(8, math.ceil(3 * cache / size)))


def in_turn(calls: list[Callable[[], Any]]) -> Callable[[], Any]:
    turns = itertools.cycle(calls)
    return lambda: next(turns)()


def variants(case: Case, sets: list[Args], compiling: bool) -> Iterator[tuple[str, Callable[[], Any]]]:
    make = backward if case.backward else forward
    plain = rival(case.op)
    yield "fastdiff", in_turn([make(case.op, args) for args in sets])
    first = [first_floating(args) for args in sets]
    if first[0] is not None:
        yield "copy", in_turn([partial(torch.empty_like(x).copy_, x) for x in first])
    compiled = torch.compile(plain, dynamic=False, mode=COMPILE_MODE)
    for word, layout in FORMATS.items() if case.layout is not None else [("", None)]:
        given = [args if layout is None else converted(args, case.dtype, layout) for args in sets]
        yield f"eager {word}".strip(), in_turn([make(plain, args) for args in given])
        if compiling and layout is case.layout:
            yield f"compile {word}".strip(), in_turn([make(compiled, args) for args in given])


def measure(case: Case, device: str, machine: dict, limits: dict[str, float], rounds: int, compiling: bool) -> Iterator[dict]:
    torch._dynamo.reset()
    args = case.make(device)
    with torch.set_grad_enabled(case.backward):
        checked = (gradient_errors if case.backward else errors_and_bounds)(case.op, args)
    wrong = [f"error {error:.2e} is above {bound:.2e}" for error, bound in checked if not error <= bound]
    if wrong:
        raise AssertionError(f"{case.checked} {case.name} {case.dtype}: {'; '.join(wrong)}")
    error, bound = max(checked)
    with torch.no_grad():
        size = traffic(case, args)
    sets = [args, *(case.make(device) for _ in range(sets_needed(size, device) - 1))]
    timings = interleaved(dict(variants(case, sets, compiling)), rounds, device)
    for variant, t in timings.items():
        moved = 2 * first_floating(args).nbytes if variant == "copy" else size
        flops = 0 if variant == "copy" else case.flops
        by_product = flops and case.dtype is not torch.float32  # the ceiling is that of bf16 products
        share = rate(flops, t) / limits["product"] if by_product else rate(moved, t) / limits["copy"]
        yield machine | {
            "op": case.checked,
            "sample": case.name,
            "dtype": str(case.dtype).removeprefix("torch."),
            "variant": variant,
            **times(t),
            "bytes": moved,
            "error": f"{error:.1e}",
            "bound": f"{bound:.1e}",
            "flops": flops or "",
            "gb_per_s": f"{rate(moved, t) / 1e9:.1f}",
            "tflop_per_s": f"{rate(flops, t) / 1e12:.2f}" if flops else "",
            "of_ceiling": f"{share:.3g}",
        }


def times(t: Timing) -> dict[str, str]:
    return {f"{k}_us": f"{1e6 * getattr(t, k):.1f}" for k in ("median", "p20", "p80")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seconds", type=float, default=150)
    parser.add_argument("--tiny", action="store_true", help="sizes for a trial run on a CPU, two rounds")
    parser.add_argument("--ops", default="", help="names with commas between them; all by default")
    args = parser.parse_args()
    began = time.monotonic()
    torch._functorch.config.donated_buffer = False  # backward runs many times over one forward
    torch.manual_seed(0)
    table, machine = Table(args.out, COLUMNS), measured_on(args.device)
    limits = {}
    for name, (work, t) in ceilings(args.device, args.tiny).items():
        limits[name] = rate(work, t)
        unit, scale = ("bytes", 1e9) if name == "copy" else ("flops", 1e12)
        columns = {unit: work, "gb_per_s" if name == "copy" else "tflop_per_s": f"{limits[name] / scale:.1f}"}
        table.write(machine | {"op": "ceiling", "sample": name, "dtype": "bfloat16", "variant": "torch"} | times(t) | columns)
        print(f"ceiling: {name} {limits[name] / scale:.1f} {'GB/s' if name == 'copy' else 'TFLOP/s'}", flush=True)
    wanted = set(filter(None, args.ops.split(",")))
    failed = left_out = 0
    for case in cases(args.tiny):
        if wanted and case.checked not in wanted:
            continue
        passed = time.monotonic() - began
        if passed > args.seconds:
            left_out += 1
            continue
        try:
            rows = list(measure(case, args.device, machine, limits, 2 if args.tiny else 21, passed < 0.75 * args.seconds))
        except Exception:  # one op that fails leaves the others their rows
            failed += 1
            print(f"FAILED {case.checked} {case.name} {case.dtype}\n{traceback.format_exc()}", flush=True)
            continue
        for row in rows:
            table.write(row)
        shown = ", ".join(f"{row['variant']} {row['median_us']}" for row in rows)
        print(f"{case.checked} {case.name} {rows[0]['dtype']}: {shown} us; {rows[0]['of_ceiling']} of the ceiling", flush=True)
    print(f"{failed} failed, {left_out} left out for want of time", flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
