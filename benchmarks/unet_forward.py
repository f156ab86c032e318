"""Times a U-Net's forward without gradients beside the same network on torch's own layers: results/unet_forward/*.csv.

    python benchmarks/unet_forward.py [--rounds N] [CASE ...]

In one process, variants in turn: ours and torch's eager in fp32 and bf16 (autocast) and both memory formats, torch's compiled
in channels_last. Each output is held against float64 first: relative to its norm, no worse than twice torch's eager one.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from record import THREADS, file_name, measured_on, write_rows
from report import write_results
from timing import interleaved
from torch.utils.flop_counter import FlopCounterMode
from torch_layers import seeded

from fastdiff.memory import keep_freed_memory
from fastdiff.models import UNet

HERE = Path(__file__).parent
COLUMNS = ("date", "commit", "device", "threads", "torch", "kernels", "case", "gflop", "side", "format", "precision", "mode",
           "median_ms", "p20_ms", "p80_ms", "error")  # fmt: skip
FORMATS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}
SETTINGS = [
    (side, layout, precision, "eager") for side in ("fastdiff", "torch") for layout in FORMATS for precision in ("fp32", "bf16")
]
SETTINGS += [("torch", "channels_last", precision, "compile") for precision in ("fp32", "bf16")]
CASES: dict[str, tuple[int, int, Callable[[], UNet]]] = {  # batch, pixels of a side, network
    "MNIST size, batch 16": (16, 28, lambda: UNet(1, 64, 256, (1, 2, 2), 2, (4,))),
    "MNIST size, batch 1": (1, 28, lambda: UNet(1, 64, 256, (1, 2, 2), 2, (4,))),
    "CIFAR size, batch 4": (4, 32, lambda: UNet(3, 128, 512, (1, 2, 2, 2), 2, (2,))),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"one of {', '.join(CASES)}; all by default")
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    if wrong := set(args.cases) - set(CASES):
        sys.exit(f"unknown case {', '.join(sorted(wrong))}: one of {', '.join(CASES)}")
    keep_freed_memory()
    torch.set_num_threads(THREADS)
    rows = [row for case in args.cases or CASES for row in measure(case, args.rounds)]
    print(write_rows(HERE / "results" / "unet_forward" / file_name(rows[0]["device"]), COLUMNS, rows, "case"))
    print(write_results())


def made(case: str, side: str, layout: str) -> UNet:
    return seeded(CASES[case][2], side).eval().to(memory_format=FORMATS[layout])


def measure(case: str, rounds: int) -> list[dict[str, Any]]:
    batch, size, _ = CASES[case]
    generator = torch.Generator().manual_seed(1)
    truth_net = made(case, "torch", "NCHW")
    x, t = torch.randn(batch, truth_net.in_channels, size, size, generator=generator), torch.arange(batch) * 50
    with torch.no_grad(), FlopCounterMode(display=False) as flops:
        truth_net(x, t)
    with torch.no_grad():
        truth = truth_net.double()(x.double(), t)
    calls, errors = {}, {}
    for setting in SETTINGS:
        calls[setting] = forward(case, x, t, *setting)
        errors[setting] = float((calls[setting]().double() - truth).norm() / truth.norm())
    for side, layout, precision, mode in SETTINGS:
        allowed = 2 * max(errors["torch", other, precision, "eager"] for other in FORMATS)
        error = errors[side, layout, precision, mode]
        assert error <= allowed, f"{case}, {side} {layout} {precision} {mode}: error {error:.1e} is above {allowed:.1e}"
    machine, rows = measured_on(), []
    for setting, timing in interleaved(calls, rounds).items():
        rows.append(machine | dict(zip(COLUMNS[8:12], setting, strict=True)) | {
            "case": case,
            "gflop": f"{flops.get_total_flops() / 1e9:.2f}",
            **{f"{k}_ms": f"{1e3 * getattr(timing, k):.2f}" for k in ("median", "p20", "p80")},
            "error": f"{errors[setting]:.1e}",
        })  # fmt: skip
        print(case, *setting, rows[-1]["median_ms"], "ms, error", rows[-1]["error"], flush=True)
    return rows


def forward(
    case: str, x: torch.Tensor, t: torch.Tensor, side: str, layout: str, precision: str, mode: str
) -> Callable[[], torch.Tensor]:
    net = made(case, side, layout)
    x = x.contiguous(memory_format=FORMATS[layout])
    run = torch.compile(net, dynamic=False) if mode == "compile" else net

    def call() -> torch.Tensor:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16) if precision == "bf16" else nullcontext():
            return run(x, t)

    return call


if __name__ == "__main__":
    main()
