"""Makes a small set of calls of every kernel, for compute-sanitizer to watch: `compute-sanitizer python gpu_calls.py`.

Each tensor is an allocation of its own (PYTORCH_NO_CUDA_MEMORY_CACHING), or an access past its end would be one into its
neighbour, which nobody sees. Sums and moments are held against the reference as well, loosely: this run is about memory.
"""

from __future__ import annotations

import argparse
import os

os.environ["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"

import torch

from fastdiff import ops
from fastdiff.ops import Op
from fastdiff.ops._oracle import as_tuple

DTYPES = (torch.float32, torch.bfloat16)


def make_calls(op: Op, device: str, at_most: int) -> int:
    """Every second sample of each dtype, from one that the dtypes do not share."""
    made = 0
    for first, dtype in enumerate(DTYPES):
        samples = list(op.small_samples(dtype, device))[first::2][:at_most]
        for sample in samples:
            for output in as_tuple(op(*sample.args)):
                if output.is_floating_point() and output.isnan().any():
                    raise AssertionError(f"{op.name} [{sample.name}] {dtype} gives NaN")
            made += 1
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--at-most", type=int, default=100, help="samples of an op and a dtype")
    args = parser.parse_args()
    for op in ops.REGISTRY.values():
        made = make_calls(op, args.device, args.at_most)
        if args.device.startswith("cuda"):
            torch.cuda.synchronize()
        print(f"{op.name}: {made} calls", flush=True)


if __name__ == "__main__":
    main()
