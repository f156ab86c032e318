"""Times every op against the best that plain torch has and writes results/<device>.csv and RESULTS.md.

    python benchmarks/run.py [op ...]

Side by side in one process: the op, its reference eager, its reference under torch.compile. A row is written only for
values that passed the gate of `fastdiff.ops._oracle` in the same run.
"""

from __future__ import annotations

import csv
import re
import sys
from datetime import UTC, datetime
from pathlib import Path

import torch
from timing import interleaved

from fastdiff import ops
from fastdiff.ops import Op, Sample
from fastdiff.ops._oracle import as_tuple, error_and_bound, in_float64
from fastdiff.training.run_folder import environment

HERE = Path(__file__).parent
THREADS = 2
COLUMNS = ("date", "commit", "device", "threads", "torch", "kernels", "op", "sample", "dtype", "variant", "median_us", "p20_us",
           "p80_us", "GB_per_s", "error", "bound")  # fmt: skip


def passes(op: Op, sample: Sample) -> tuple[float, float]:
    """The largest error of the op's outputs and its bound; AssertionError where it is above."""
    outputs, plain = as_tuple(op(*sample.args)), as_tuple(op.reference(*sample.args))
    truth = as_tuple(op.reference(*in_float64(sample.args)))
    checked = [error_and_bound(g, p, t, op.floor) for g, p, t in zip(outputs, plain, truth, strict=True)]
    assert all(error <= bound for error, bound in checked), f"{op.name} [{sample.name}]: {checked}"
    return max(checked)


def traffic(op: Op, sample: Sample) -> int:
    """Bytes that the op must move at least: every input read once, every output written once."""
    tensors = [a for a in (*sample.args, *as_tuple(op(*sample.args))) if isinstance(a, torch.Tensor)]
    return sum(t.numel() * t.element_size() for t in tensors)


def measure(names: list[str]) -> list[dict]:
    torch.set_num_threads(THREADS)
    e = environment()
    machine = {
        "date": datetime.now(UTC).date().isoformat(),
        "commit": (e["git"] or "")[:10],
        "device": e["processor"],
        "threads": THREADS,
        "torch": e["torch"],
        "kernels": ops.native.cpu_level,
    }
    rows = []
    for op in ops.REGISTRY.values():
        if names and op.name not in names:
            continue
        for dtype in (torch.float32, torch.bfloat16):
            for sample in op.samples(dtype, "cpu"):
                if not sample.large:
                    continue
                with torch.no_grad():
                    error, bound = passes(op, sample)
                    compiled = torch.compile(op.reference)
                    variants = {"fastdiff": op, "eager": op.reference, "compile": compiled}
                    timings = interleaved({k: (lambda f=f, a=sample.args: f(*a)) for k, f in variants.items()})
                    size = traffic(op, sample)
                for variant, t in timings.items():
                    times = {"median_us": t.median, "p20_us": t.p20, "p80_us": t.p80}
                    rows.append(
                        machine
                        | {"op": op.name, "sample": sample.name, "dtype": str(dtype).removeprefix("torch."), "variant": variant}
                        | {k: f"{1e6 * v:.1f}" for k, v in times.items()}
                        | {"GB_per_s": f"{size / t.median / 1e9:.2f}", "error": f"{error:.1e}", "bound": f"{bound:.1e}"}
                    )
                print(op.name, sample.name, dtype, {k: f"{1e6 * t.median:.0f} us" for k, t in timings.items()}, flush=True)
    return rows


def write_csv(rows: list[dict]) -> Path:
    """Rows of ops measured now take the place of theirs; others stay."""
    name = re.sub(r"[^a-z0-9]+", "-", rows[0]["device"].lower()).strip("-") or "cpu"
    path = HERE / "results" / f"{name}.csv"
    measured = {row["op"] for row in rows}
    kept = [r for r in csv.DictReader(path.open()) if r["op"] not in measured] if path.exists() else []
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(kept + rows)
    return path


def main() -> None:
    unknown = set(sys.argv[1:]) - set(ops.REGISTRY)
    if unknown:
        sys.exit(f"unknown op {', '.join(sorted(unknown))}: one of {', '.join(ops.REGISTRY)}")
    rows = measure(sys.argv[1:])
    if rows:
        print(write_csv(rows))
    from report import write_results

    print(write_results())


if __name__ == "__main__":
    main()
