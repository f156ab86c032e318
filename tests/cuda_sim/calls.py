"""Loads simulated CUDA kernels and makes the registry's calls to them, in a process of its own where a sanitizer watches.

python tests/cuda_sim/calls.py LIBRARY... [--ops film,...] [--dtypes float32,...] [--samples REGEX] [--orders up,down,1]
    [--share 0.3 --seed 0]
"""

from __future__ import annotations

import argparse
import ctypes
import itertools
import os
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fastdiff import ops
from fastdiff.ops import Op, Sample
from fastdiff.ops._oracle import errors_and_bounds
from fastdiff.ops.pack_conv_weight import order_of

NAMESPACE = "fastdiff_sim"
_keep: list[Any] = []  # libraries and schemas live as long as the process


@dataclass(frozen=True)
class Simulated:
    """An op whose call runs its CUDA kernel in the simulator, on CPU tensors."""

    op: Op
    call: Callable[..., Any]

    @property
    def reference(self) -> Callable[..., Any]:
        return self.op.reference

    @property
    def plain(self) -> Callable[..., Any]:
        return self.op.plain

    @property
    def floor(self) -> float:
        return self.op.floor

    def __call__(self, *args: Any) -> Any:
        return self.call(*args)


def load(library: Path) -> dict[str, Simulated]:
    """The simulated ops of a library that `build.build` made. Once per process."""
    compiled = ctypes.CDLL(str(library))
    compiled.cuda_sim_ops.restype = ctypes.c_char_p
    names = compiled.cuda_sim_ops().decode().split()
    schemas = torch.library.Library(NAMESPACE, "DEF")
    _keep.extend((compiled, schemas))
    for name in names:
        schemas.define(str(ops.REGISTRY[name].overload._schema).removeprefix("fastdiff::"))
    assert compiled.cuda_sim_register() == 0
    return {name: Simulated(ops.REGISTRY[name], getattr(getattr(torch.ops, NAMESPACE), name)) for name in names}


def cuda_samples(op: Op, dtype: torch.dtype) -> Iterator[Sample]:
    """The registry's, with weights as they are packed on CUDA."""
    for sample in op.small_samples(dtype, "cpu"):
        if op.name == "conv2d_fused":
            x, x2, weight, _, *rest = sample.args
            packed = ops.REGISTRY["pack_conv_weight"].reference(weight, *order_of(dtype, "cuda"), False)
            sample = Sample(sample.name, (x, x2, weight, packed, *rest), sample.tiny)
        yield sample


def wrong(op: Simulated, sample: Sample) -> list[str]:
    """What a call gives that it must not: nothing where all is well. RuntimeError is the simulator's word."""
    checked = errors_and_bounds(op, sample.args)  # type: ignore[arg-type]  all that it needs of an op
    return [f"output {i}: {error:.3e} is above {bound:.3e}" for i, (error, bound) in enumerate(checked) if not error <= bound]


def chosen(share: float, *what: object) -> bool:
    """A seeded choice of this share of things: the same in each process and whatever else there is."""
    return random.Random(repr(what)).random() < share


def make_calls(library: Path, args: argparse.Namespace) -> None:
    simulated = load(library)
    names = args.ops.split(",") if args.ops else list(simulated)
    count = 0
    for order, name, dtype in itertools.product(args.orders.split(","), names, args.dtypes.split(",")):
        os.environ["CUDA_SIM_ORDER"] = order
        for sample in cuda_samples(ops.REGISTRY[name], getattr(torch, dtype)):
            if not re.search(args.samples, sample.name) or not chosen(args.share, args.seed, order, name, sample.name, dtype):
                continue
            faults = wrong(simulated[name], sample)
            assert not faults, f"{name} [{sample.name}] {dtype}, threads {order}: {faults}"
            count += 1
    print(f"{count} calls are right")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("libraries", type=Path, nargs="+", help="of several, each is followed by a line with its exit code")
    parser.add_argument("--ops", help="all by default")
    parser.add_argument("--dtypes", default="float32,bfloat16,float16")
    parser.add_argument("--samples", default="", help="those whose names this regular expression is found in")
    parser.add_argument("--orders", default=os.environ.get("CUDA_SIM_ORDER", "up"), help="the values of CUDA_SIM_ORDER")
    parser.add_argument("--share", type=float, default=1.0, help="how much of all calls to make")
    parser.add_argument("--seed", type=int, default=0, help="which ones, of a share")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if len(args.libraries) == 1:
        return make_calls(args.libraries[0], args)
    for library in args.libraries:  # a process has one; to import torch under a sanitizer takes longer than the calls
        child = os.fork()
        if not child:
            return make_calls(library, args)  # and on to the ordinary end, where a sanitizer sets the exit code
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(f"{library} ended with {code}", flush=True)


if __name__ == "__main__":
    main()
