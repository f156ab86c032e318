"""Times inference of classification networks beside torch's own layers and OpenVINO: results/classifiers/*.csv.

    python benchmarks/classifiers.py [--rounds N] [--threads N] [CASE ...]

In one process, variants in turn: ours and torch's, eager in fp32 and bf16 (autocast) and both memory formats, torch's compiled
in channels_last, OpenVINO's where it is installed (`pip install openvino`). Each output is held against float64 first: relative
to its norm, no worse than twice torch's eager one. With one thread the times are the process's own, which other work on the
machine disturbs less.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from record import THREADS, file_name, measured_on, write_rows
from report import write_results
from timing import interleaved
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fastdiff.memory import keep_freed_memory
from fastdiff.models import VGG, ResNet
from fastdiff.nn import fused

HERE = Path(__file__).parent
COLUMNS = ("date", "commit", "device", "threads", "torch", "kernels", "case", "gflop", "side", "format", "precision", "mode",
           "median_ms", "p20_ms", "p80_ms", "error")  # fmt: skip
FORMATS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}
PRECISIONS = ("fp32", "bf16")
SETTINGS = [
    (side, layout, precision, "eager") for side in ("fastdiff", "torch") for layout in FORMATS for precision in PRECISIONS
]
SETTINGS += [("torch", "channels_last", precision, "compile") for precision in PRECISIONS]
if find_spec("openvino"):
    SETTINGS += [("OpenVINO", "NCHW", precision, "compile") for precision in PRECISIONS]
PIXELS = 224
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "ResNet-18": lambda: ResNet.of_depth(18),
    "ResNet-50": lambda: ResNet.of_depth(50),
    "VGG-11": lambda: VGG(11),
}
CASES = {f"{name}, batch {batch}": (name, batch) for name in NETWORKS for batch in (1, 16)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"one of {', '.join(CASES)}; all by default")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=THREADS)
    args = parser.parse_args()
    if wrong := set(args.cases) - set(CASES):
        sys.exit(f"unknown case {', '.join(sorted(wrong))}: one of {', '.join(CASES)}")
    keep_freed_memory()
    torch.set_num_threads(args.threads)
    clock = time.process_time if args.threads == 1 else time.perf_counter
    with torch.no_grad(), patch("timing.time.perf_counter", clock):
        rows = [row for case in args.cases or CASES for row in measure(case, args.rounds, args.threads)]
    print(write_rows(HERE / "results" / "classifiers" / file_name(rows[0]["device"]), COLUMNS, rows, "case"))
    print(write_results())


def made(case: str, layout: str) -> nn.Module:
    torch.manual_seed(0)
    net = NETWORKS[CASES[case][0]]().eval()
    for name, buffer in net.named_buffers():  # of a network that has learned; else batch norms would do nothing
        if name.endswith(("running_mean", "running_var")):
            buffer.uniform_(0.5, 1.5) if name.endswith("var") else buffer.normal_(std=0.1)
    return net.to(memory_format=FORMATS[layout])


def measure(case: str, rounds: int, threads: int) -> list[dict[str, Any]]:
    x = torch.randn(CASES[case][1], 3, PIXELS, PIXELS, generator=torch.Generator().manual_seed(1))
    net = made(case, "NCHW")
    with FlopCounterMode(display=False) as flops, fused.by_layers():
        net(x)
    truth = net.double()(x[:2].double())
    calls, errors = {}, {}
    for setting in SETTINGS:
        calls[setting] = forward(case, x, threads, *setting)
        errors[setting] = float((calls[setting]()[:2].double() - truth).norm() / truth.norm())
    for side, layout, precision, mode in SETTINGS:
        allowed = 2 * max(errors["torch", other, precision, "eager"] for other in FORMATS)
        error = errors[side, layout, precision, mode]
        assert error <= allowed, f"{case}, {side} {layout} {precision} {mode}: error {error:.1e} is above {allowed:.1e}"
    machine, rows = measured_on() | {"threads": threads}, []
    for setting, timing in interleaved(calls, rounds).items():
        rows.append(machine | dict(zip(COLUMNS[8:12], setting, strict=True)) | {
            "case": case,
            "gflop": f"{flops.get_total_flops() / 1e9:.2f}",
            **{f"{k}_ms": f"{1e3 * getattr(timing, k):.2f}" for k in ("median", "p20", "p80")},
            "error": f"{errors[setting]:.1e}",
        })  # fmt: skip
        print(case, *setting, rows[-1]["median_ms"], "ms, error", rows[-1]["error"], flush=True)
    return rows


def forward(case: str, x: torch.Tensor, threads: int, side: str, layout: str, precision: str, mode: str) -> Callable[[], Any]:
    net = made(case, layout)
    if side == "OpenVINO":
        return by_openvino(net, x, threads, precision)
    x = x.contiguous(memory_format=FORMATS[layout])
    run = torch.compile(net, dynamic=False) if mode == "compile" else net

    def call() -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16) if precision == "bf16" else nullcontext():
            return run(x)

    def call_by_layers() -> torch.Tensor:
        with fused.by_layers():
            return call()

    return call if side == "fastdiff" or mode == "compile" else call_by_layers


def by_openvino(net: nn.Module, x: torch.Tensor, threads: int, precision: str) -> Callable[[], torch.Tensor]:
    import openvino

    with fused.by_layers():
        model = openvino.convert_model(net, example_input=x, input=[list(x.shape)])
    options = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    options["INFERENCE_PRECISION_HINT"] = {"fp32": "f32", "bf16": "bf16"}[precision]
    request = openvino.Core().compile_model(model, "CPU", options).create_infer_request()
    images = x.numpy()
    return lambda: torch.from_numpy(request.infer({0: images})[0])


if __name__ == "__main__":
    main()
