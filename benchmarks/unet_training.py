"""Times a training step of a U-Net beside the same network on torch's own layers: results/unet_training/*.csv.

    python benchmarks/unet_training.py [--rounds N] [CASE ...]

A step is forward, backward and fused AdamW, with a denoiser's loss. In one process, variants in turn: ours and torch's eager
in fp32 and bf16 (autocast) and both memory formats. The gradients of all parameters are held against float64 first: relative to
their norm, no worse than twice torch's. Then memory, each variant in a process of its own: what a step takes at most beyond
what was there before it (network, gradients, optimizer), and the peak of the whole process.
"""

from __future__ import annotations

import argparse
import ctypes
import subprocess
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
COLUMNS = ("date", "commit", "device", "threads", "torch", "kernels", "case", "gflop", "side", "format", "precision",
           "median_ms", "p20_ms", "p80_ms", "error", "step_mb", "process_mb")  # fmt: skip
FORMATS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}
SETTINGS = [(side, layout, precision) for side in ("fastdiff", "torch") for layout in FORMATS for precision in ("fp32", "bf16")]
CASES: dict[str, tuple[int, int, Callable[[], UNet]]] = {  # batch, pixels of a side, network
    "MNIST size, batch 16": (16, 28, lambda: UNet(1, 64, 256, (1, 2, 2), 2, (4,))),
    "digits size, batch 64": (64, 8, lambda: UNet(1, 32, 128, (1, 2), 2, (2,))),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"one of {', '.join(CASES)}; all by default")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--memory", nargs=3, metavar=("SIDE", "FORMAT", "PRECISION"), help="print one variant's megabytes")
    args = parser.parse_args()
    if wrong := set(args.cases) - set(CASES):
        sys.exit(f"unknown case {', '.join(sorted(wrong))}: one of {', '.join(CASES)}")
    torch.set_num_threads(THREADS)
    if args.memory:
        print(*megabytes(args.cases[0], *args.memory))
        return
    keep_freed_memory()
    rows = [row for case in args.cases or CASES for row in measure(case, args.rounds)]
    print(write_rows(HERE / "results" / "unet_training" / file_name(rows[0]["device"]), COLUMNS, rows, "case"))
    print(write_results())


def made(case: str, side: str, layout: str) -> UNet:
    return seeded(CASES[case][2], side).train().to(memory_format=FORMATS[layout])


def batch_of(case: str, layout: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Noisy images, timesteps, and the noise that is to be predicted."""
    batch, size, _ = CASES[case]
    generator = torch.Generator().manual_seed(1)
    x, noise = torch.randn(2, batch, 1, size, size, generator=generator)
    return x.contiguous(memory_format=FORMATS[layout]), torch.arange(batch) * (1000 // batch), noise


def loss_of(net: UNet, case: str, layout: str, precision: str) -> torch.Tensor:
    x, t, noise = batch_of(case, layout)
    dtype = next(net.parameters()).dtype
    with torch.autocast("cpu", torch.bfloat16) if precision == "bf16" else nullcontext():
        return (net(x.to(dtype), t).to(dtype) - noise.to(dtype)).square().mean()


def gradients(net: UNet, case: str, layout: str, precision: str) -> torch.Tensor:
    loss_of(net, case, layout, precision).backward()
    found = torch.cat([p.grad.double().flatten() for p in net.parameters()])
    net.zero_grad()
    return found


def step(case: str, side: str, layout: str, precision: str) -> Callable[[], None]:
    net = made(case, side, layout)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4, fused=True)

    def call() -> None:
        optimizer.zero_grad()
        loss_of(net, case, layout, precision).backward()
        optimizer.step()

    return call


def measure(case: str, rounds: int) -> list[dict[str, Any]]:
    net = made(case, "torch", "NCHW")
    with FlopCounterMode(display=False) as flops:
        gradients(net, case, "NCHW", "fp32")
    truth = gradients(net.double(), case, "NCHW", "fp32")
    errors = {}
    for setting in SETTINGS:
        found = gradients(made(case, *setting[:2]), case, *setting[1:])
        errors[setting] = float((found - truth).norm() / truth.norm())
    for side, layout, precision in SETTINGS:
        allowed = 2 * max(errors["torch", other, precision] for other in FORMATS)
        error = errors[side, layout, precision]
        assert error <= allowed, f"{case}, {side} {layout} {precision}: error {error:.1e} is above {allowed:.1e}"
    machine, rows = measured_on(), []
    calls = {setting: step(case, *setting) for setting in SETTINGS}
    for setting, timing in interleaved(calls, rounds).items():
        printed = subprocess.run(
            [sys.executable, __file__, case, "--memory", *setting], capture_output=True, text=True, check=True
        ).stdout
        taken, peak = printed.split()
        rows.append(machine | dict(zip(COLUMNS[8:11], setting, strict=True)) | {
            "case": case,
            "gflop": f"{flops.get_total_flops() / 1e9:.2f}",
            **{f"{k}_ms": f"{1e3 * getattr(timing, k):.2f}" for k in ("median", "p20", "p80")},
            "error": f"{errors[setting]:.1e}",
            "step_mb": taken,
            "process_mb": peak,
        })  # fmt: skip
        print(case, *setting, rows[-1]["median_ms"], "ms, error", rows[-1]["error"], taken, "of", peak, "MB", flush=True)
    return rows


def megabytes(case: str, side: str, layout: str, precision: str) -> tuple[int, int]:
    """What steps take at most beyond what lies there before them, and the peak of the process: on Linux, of glibc."""
    call = step(case, side, layout, precision)
    call()  # makes gradients and the optimizer's state, and loads what is loaded late
    ctypes.CDLL(None).malloc_trim(0)
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    for _ in range(3):
        call()
    peak = _status("VmHWM")
    return round(peak - before), round(peak)


def _status(name: str) -> float:
    """Megabytes, by the kernel's own count."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    main()
