"""One U-Net on diffusers, OpenVINO and fastdiff: forward, sampling and training, results/peers/*.csv.

    pip install torch==2.13.0 -e ".[bench]"
    python benchmarks/peers.py [--rounds N] [--quick] [--breakdown] [CASE ...]

The weights are made once, written by `UNet.save_diffusers` and read by each peer in a process of its own. The processes take
turns, in an order that is new in each round, while all others sleep. Errors are those of the output in float64, by diffusers,
relative to its norm; in training of a gradient in float32.
--quick: a minute, smaller, nothing recorded. --breakdown: where our forward spends its time, recorded beside.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peer_breakdown import breakdown, peaks
from peer_process import JOBS, Case, Peer, Running, in_turns, theirs
from record import THREADS, file_name, measured_on, write_rows
from report import write_results
from torch.utils.flop_counter import FlopCounterMode

from fastdiff.models import UNet

HERE = Path(__file__).parent
MACHINE = ("date", "commit", "device", "threads", "torch", "kernels", "amx", "diffusers", "openvino")
COLUMNS = (*MACHINE, "case", "gflop", "peer", "median_ms", "p20_ms", "p80_ms", "error", "peak_bf16", "peak_fp32", "memory_mb",
           "added_mb")  # fmt: skip
BREAKDOWN = (*MACHINE, "case", "op", "calls", "ms", "share", "gflop_per_s")
FORWARD = (
    Peer("diffusers", "fp32"),
    Peer("diffusers", "bf16"),
    Peer("diffusers", "bf16", "channels_last"),
    Peer("diffusers", "bf16", "channels_last", "compile"),
    Peer("OpenVINO", "fp32"),
    Peer("OpenVINO", "bf16"),
    Peer("fastdiff", "bf16"),
    Peer("fastdiff", "highest"),
    Peer("fastdiff", "high"),
)
PEERS = {
    "forward": FORWARD,
    "sampling": (*FORWARD[1:4], Peer("fastdiff", "bf16")),
    "training": (
        Peer("diffusers", "bf16"),
        Peer("diffusers", "bf16", "channels_last"),
        Peer("fastdiff", "bf16", "channels_last"),
    ),
}
CASES = {
    "MNIST size, batch 16": Case("forward", "mnist", 16, 28, 1),
    "MNIST size, batch 1": Case("forward", "mnist", 1, 28, 1),
    "CIFAR size, batch 4": Case("forward", "cifar", 4, 32, 3),
    "50 DDIM steps of 16 MNIST-size images": Case("sampling", "mnist", 16, 28, 1, steps=50),
    "training step, MNIST size, batch 16": Case("training", "mnist", 16, 28, 1),
}
QUICK = {
    "MNIST size, batch 1": CASES["MNIST size, batch 1"],
    "2 DDIM steps of 2 MNIST-size images": Case("sampling", "mnist", 2, 28, 1, steps=2),
    "training step, MNIST size, batch 2": Case("training", "mnist", 2, 28, 1),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"one of {', '.join(CASES)}; all by default")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--threads", type=int, default=THREADS)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--breakdown", action="store_true")
    args = parser.parse_args()
    known = QUICK if args.quick else CASES
    if wrong := set(args.cases) - set(known):
        sys.exit(f"unknown case {', '.join(sorted(wrong))}: one of {', '.join(known)}")
    torch.set_num_threads(args.threads)
    machine = measured_on() | {
        "threads": args.threads,
        "amx": "yes" if torch.cpu.get_capabilities().get("amx_tile") else "no",
        **{name: version(name) for name in ("diffusers", "openvino")},
    }
    chosen = {name: case for name, case in known.items() if name in args.cases or not args.cases}
    with tempfile.TemporaryDirectory() as folder:
        save_networks(Path(folder))
        chosen = {name: replace(case, folder=f"{folder}/{case.folder}") for name, case in chosen.items()}
        for rows in measure(chosen, machine, 2 if args.quick else args.rounds, compiled=not args.quick):
            if not args.quick:  # case by case: one that fails, or is stopped, costs no other
                record("peers", machine, COLUMNS, rows)
        for name, case in chosen.items() if args.breakdown else ():
            parts = parts_of(name, case, machine)
            if not args.quick:
                record("peers_breakdown", machine, BREAKDOWN, parts)
    if not args.quick:
        print(write_results())


def record(what: str, machine: dict[str, Any], columns: Sequence[str], rows: list[dict[str, Any]]) -> None:
    if rows:
        print(write_rows(HERE / "results" / what / file_name(machine["device"]), columns, rows, "case"), flush=True)


def save_networks(folder: Path) -> None:
    """The two networks of the comparison with torch's initial weights, none of them zero."""
    torch.manual_seed(0)
    options: dict[str, Any] = {"groups": 32, "head_dim": 8, "conditioning": "add"}
    networks = {
        "mnist": UNet(1, 64, 256, (1, 2, 2), 2, (4,), sinusoid_dim=64, **options),
        "cifar": UNet(3, 128, 512, (1, 2, 2, 2), 2, (2,), sinusoid_dim=128, **options),
    }
    for name, net in networks.items():
        for module in net.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
        net.save_diffusers(folder / name)


def measure(cases: dict[str, Case], machine: dict[str, Any], rounds: int, compiled: bool) -> Iterator[list[dict[str, Any]]]:
    """The rows of each case. The processes of a forward stay for sampling, so that no network is compiled twice."""
    for jobs in (("forward", "sampling"), ("training",)):
        these = {name: case for name, case in cases.items() if case.job in jobs}
        peers = [
            p for p in dict.fromkeys(p for case in these.values() for p in PEERS[case.job]) if compiled or p.how == "eager"
        ]
        running = {peer.name: Running(peer, machine["threads"]) for peer in peers}
        try:
            for name, case in these.items():
                yield measure_case(name, case, running, machine, rounds)
        finally:
            for process in running.values():
                process.end()


def measure_case(
    name: str, case: Case, running: dict[str, Running], machine: dict[str, Any], rounds: int
) -> list[dict[str, Any]]:
    at_work = {peer.name: running[peer.name] for peer in PEERS[case.job] if peer.name in running}
    for process in at_work.values():
        process.tell("prepare", case)  # all at once, while there is nothing to time
    gflop, truth = truth_of(case)
    errors = {}
    for peer, process in at_work.items():
        output = process.answer()
        errors[peer] = float(np.linalg.norm(output - truth) / np.linalg.norm(truth))
    best = peaks()
    taken = in_turns(at_work, rounds if case.job != "sampling" else max(2, rounds // 3))
    best = {precision: max(value, best[precision]) for precision, value in peaks().items()}
    rows = []
    for peer, seconds in taken.items():
        fifths = statistics.quantiles(seconds, n=5)
        timing = {"median_ms": statistics.median(seconds), "p20_ms": fifths[0], "p80_ms": fifths[3]}
        peak, added = at_work[peer].ask("memory") if case.job == "training" else ("", "")
        rows.append(machine | {key: f"{1e3 * value:.2f}" for key, value in timing.items()} | {
            "case": name,
            "gflop": f"{gflop:.2f}",
            "peer": peer,
            "error": f"{errors[peer]:.1e}",
            "peak_bf16": f"{best['bf16']:.2f}",
            "peak_fp32": f"{best['fp32']:.2f}",
            "memory_mb": peak,
            "added_mb": added,
        })  # fmt: skip
        print(f"{name}, {peer}: {rows[-1]['median_ms']} ms, error {rows[-1]['error']}", flush=True)
    return rows


def truth_of(case: Case) -> tuple[float, np.ndarray]:
    """GFLOP of a call, and diffusers' output: of a forward in float64, of sampling and training in float32."""
    net, x, t = theirs(case.folder), case.images(), case.timesteps()
    with torch.no_grad(), FlopCounterMode(display=False) as flops:
        net(x, t)
    passes = {"forward": 1, "sampling": case.steps, "training": 3}[case.job]
    gflop = flops.get_total_flops() / 1e9 * passes
    if case.job == "forward":
        with torch.no_grad():
            return gflop, net.double()(x.double(), t).numpy()
    return gflop, JOBS[case.job](Peer("diffusers", "fp32"), case)().double().numpy()


def parts_of(name: str, case: Case, machine: dict[str, Any]) -> Iterable[dict[str, Any]]:
    if case.job != "forward":
        return
    for peer in (p for p in FORWARD if p.ours and p.precision != "high"):
        for row in breakdown(peer, case):
            yield machine | {"case": f"{name}, {peer.precision}", **row}
            print(f"{name}, {peer.precision}: {row['op']}: {row['ms']} ms, {float(row['share']):.0%}", row["gflop_per_s"])


if __name__ == "__main__":
    main()
