"""Times every op against the best that plain torch has and writes results/<device>.csv and RESULTS.md.

    python benchmarks/run.py [op ...]

Side by side in one process: the op (its public function where that chooses between ways, see `gate.py`), its rival
(`rivals.py`) eager and under torch.compile in both memory formats and, for bf16, in fp16 too, and a copy of the op's first
tensor, the least that memory allows. Backward is autograd's, over one forward that was kept. A row is written only for values
that passed the gate in the same run.

The process runs with an allocator that keeps freed memory (see `fastdiff.memory`): glibc's default returns it after every
large tensor, and the page faults of the next one are then most of every variant's time.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch._functorch.config
from gate import Args, backward, ours, passes
from record import THREADS, file_name, measured_on, write_rows
from rivals import rival
from timing import interleaved

from fastdiff import ops
from fastdiff.memory import keep_freed_memory
from fastdiff.ops import Op, Sample
from fastdiff.ops._oracle import as_tuple

HERE = Path(__file__).parent
COLUMNS = ("date", "commit", "device", "threads", "torch", "kernels", "op", "sample", "dtype", "variant", "median_us", "p20_us",
           "p80_us", "bytes", "error", "bound")  # fmt: skip
PLAIN, FORMATS = {"": torch.contiguous_format}, {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}
SEQUENCES = ("attention",)  # whose four dimensions are no image's


def traffic(op: Op, args: Args) -> int:
    """Bytes that the op must move at least: every input read once, every output written once."""
    return sum(t.nbytes for t in (*args, *as_tuple(op(*args))) if isinstance(t, torch.Tensor))


def first_floating(args: Args) -> torch.Tensor | None:
    return next((a for a in args if isinstance(a, torch.Tensor) and a.is_floating_point()), None)


def converted(args: Args, dtype: torch.dtype, layout: torch.memory_format) -> Args:
    """Images in this memory format; what has the first image's dtype, in this one."""
    first = first_floating(args)
    assert first is not None

    def convert(a: Any) -> Any:
        if not isinstance(a, torch.Tensor):
            return a
        a = a.to(dtype) if a.dtype is first.dtype else a
        return a.contiguous(memory_format=layout) if a.dim() == 4 else a

    return tuple(convert(a) for a in args)


def forward(function: Callable[..., Any], args: Args) -> Callable[[], Any]:
    def call() -> Any:
        with torch.no_grad():
            return function(*args)

    return call


def variants(op: Op, args: Args, make: Callable[..., Callable[[], Any]]) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Names and calls: fastdiff, copy, and each rival with its memory format and dtype."""
    yield "fastdiff", make(ours(op), args)
    tensor = first_floating(args)
    if tensor is None:
        yield "eager", make(rival(op), args)
        yield "compile", make(torch.compile(rival(op)), args)
        return
    target = torch.empty_like(tensor)
    yield "copy", lambda: target.copy_(tensor)
    half = (torch.bfloat16, torch.float16)
    for dtype in half if tensor.dtype in half else (tensor.dtype,):
        for name, layout in FORMATS.items() if tensor.dim() == 4 and op.name not in SEQUENCES else PLAIN.items():
            inputs = converted(args, dtype, layout)
            how = f"{name} {str(dtype).removeprefix('torch.')}".strip()
            yield f"eager {how}", make(rival(op), inputs)
            if dtype is tensor.dtype:
                yield f"compile {how}", make(torch.compile(rival(op), dynamic=False), inputs)


def cases(names: list[str]) -> Iterator[tuple[Op, Sample, torch.dtype, Op, Sample]]:
    """(op, sample, dtype, checked op, its sample): the checked op is the one timed, or its backward."""
    for name, op in ops.REGISTRY.items():
        back = ops.REGISTRY.get(f"{name}_backward")
        for checked in (op,) if back is None else (op, back):
            if name.endswith("_backward") or (names and checked.name not in names):
                continue
            for dtype in (torch.float32, torch.bfloat16):
                for own, sample in zip(checked.samples(dtype, "cpu"), op.samples(dtype, "cpu"), strict=True):
                    if sample.large:
                        yield op, sample, dtype, checked, own


def measure(names: list[str]) -> Iterator[dict]:
    torch.set_num_threads(THREADS)
    torch._functorch.config.donated_buffer = False  # backward runs many times over one forward
    machine = measured_on()
    for op, sample, dtype, checked, own in cases(names):
        torch._dynamo.reset()
        error, bound = passes(op, sample.args, checked, own.args)
        with torch.no_grad():
            size = traffic(checked, own.args)
        timings = interleaved(dict(variants(op, sample.args, forward if op is checked else backward)))
        for variant, t in timings.items():
            yield machine | {
                "op": checked.name,
                "sample": sample.name,
                "dtype": str(dtype).removeprefix("torch."),
                "variant": variant,
                **{f"{k}_us": f"{1e6 * getattr(t, k):.1f}" for k in ("median", "p20", "p80")},
                "bytes": 2 * first_floating(sample.args).nbytes if variant == "copy" else size,
                "error": f"{error:.1e}",
                "bound": f"{bound:.1e}",
            }
        print(checked.name, sample.name, dtype, {k: f"{1e6 * t.median:.0f}" for k, t in timings.items()}, flush=True)


def main() -> None:
    unknown = set(sys.argv[1:]) - set(ops.REGISTRY)
    if unknown:
        sys.exit(f"unknown op {', '.join(sorted(unknown))}: one of {', '.join(ops.REGISTRY)}")
    keep_freed_memory()
    rows = []
    try:
        for row in measure(sys.argv[1:]):
            rows.append(row)  # noqa: PERF402  one by one, so that an interrupt loses none
    finally:
        if rows:
            print(write_rows(HERE / "results" / file_name(rows[0]["device"]), COLUMNS, rows, "op"))
    from report import write_results

    print(write_results())


if __name__ == "__main__":
    main()
