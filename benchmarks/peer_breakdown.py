"""Where our forward spends its time: every op of the registry timed by itself in a process of one network."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peer_process import Case, Peer, forward

from fastdiff.nn.fused import plan
from fastdiff.ops import Op

CALLS = 10
REST = "all else: torch's operators, Python"


def breakdown(peer: Peer, case: Case) -> list[dict[str, Any]]:
    """A row for each kind of call: its share of a forward, milliseconds, number of calls, GFLOP/s where it multiplies."""
    call = forward(peer, case)
    for _ in range(3):
        call()
    begin = time.perf_counter()
    for _ in range(CALLS):
        call()
    whole = time.perf_counter() - begin
    with timed_ops() as kinds:
        for _ in range(CALLS):
            call()
    rows = [
        _row(kind, seconds, len(taken) // CALLS, flop, whole)
        for kind, (taken, flop) in kinds.items()
        for seconds in [sum(taken)]
    ]
    rest = max(whole - sum(sum(taken) for taken, _ in kinds.values()), 0.0)
    rows.append(_row(REST, rest, 0, 0, whole))
    return sorted(rows, key=lambda row: -float(row["ms"]))


def _row(kind: str, seconds: float, calls: int, flop: float, whole: float) -> dict[str, Any]:
    return {
        "op": kind,
        "calls": calls or "",
        "ms": f"{1e3 * seconds / CALLS:.3f}",
        "share": f"{seconds / whole:.3f}",
        "gflop_per_s": f"{flop / seconds / 1e9:.0f}" if flop else "",
    }


@contextmanager
def timed_ops() -> Iterator[dict[str, tuple[list[float], float]]]:
    """Of each kind of call, the seconds of each and the floating-point operations of all.

    Networks run without their plans, which go past `Op.__call__`.
    """
    kinds: dict[str, tuple[list[float], float]] = defaultdict(lambda: ([], 0.0))
    own, watched = Op.__call__, plan._watched

    def timed(op: Op, *args: Any) -> Any:
        begin = time.perf_counter()
        result = own(op, *args)
        seconds = time.perf_counter() - begin
        kind, flop = _kind(op, args, result)
        taken, so_far = kinds[kind]
        kinds[kind] = ([*taken, seconds], so_far + flop)
        return result

    Op.__call__, plan._watched = timed, lambda: True
    try:
        yield kinds
    finally:
        Op.__call__, plan._watched = own, watched


def _kind(op: Op, args: tuple[Any, ...], result: Any) -> tuple[str, float]:
    """The op with what its speed depends on, and its multiplications and additions."""
    if op.name == "conv2d_fused":
        y, weight = result[0], args[2]
        kernel, stride = "x".join(map(str, weight.shape[2:])), f", stride {args[10]}" if args[10] > 1 else ""
        upsampled = ", upsampled" if args[12] else ""
        n, _, height, width = y.shape
        return f"{op.name} {kernel}{stride}{upsampled} to {height}x{width}", 2.0 * n * height * width * weight.numel()
    if op.name == "attention":
        q, k = args[:2]
        n, heads, rows, d = q.shape
        return f"{op.name} {rows} pixels, {heads} heads of {d}", 4.0 * n * heads * rows * k.shape[2] * d
    return op.name, 0.0


def peaks(size: int = 2048, calls: int = 8) -> dict[str, float]:
    """TFLOP/s of torch's matrix products, the best of a few."""
    best = {}
    for name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        a, b = (torch.randn(size, size).to(dtype) for _ in range(2))
        a @ b
        seconds = []
        for _ in range(calls):
            begin = time.perf_counter()
            a @ b
            seconds.append(time.perf_counter() - begin)
        best[name] = 2 * size**3 / min(seconds) / 1e12
    return best
