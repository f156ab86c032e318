"""Prints what a sampler's evaluation costs besides the network, noise included: microseconds of one thread's processor time.

    python benchmarks/sampling_loop.py

The network returns its input. 250 timesteps, images of 28x28, the median of rounds in which all samplers take turns.
"""

from __future__ import annotations

import statistics
import time

import torch
from record import measured_on

from fastdiff.diffusion import SAMPLERS, NoiseScheduler, sample
from fastdiff.diffusion.samplers import sampler_steps
from fastdiff.memory import keep_freed_memory

STEPS, ROUNDS, BATCHES = 250, 9, (16, 1)


def main() -> None:
    keep_freed_memory()
    torch.set_num_threads(1)
    scheduler = NoiseScheduler(schedule_type="cosine")
    taken: dict[tuple[str, int], list[float]] = {}
    for _ in range(ROUNDS):
        for batch in BATCHES:
            for sampler in SAMPLERS:
                begin = time.process_time()
                sample(lambda x, t: x, scheduler, (batch, 1, 28, 28), sampler=sampler, steps=STEPS, spacing="trailing", seed=0)
                taken.setdefault((sampler, batch), []).append(time.process_time() - begin)
    timesteps = list(range(STEPS - 1, -1, -1))
    machine = measured_on()
    print(f"{machine['device']}, torch {machine['torch']}, kernels {machine['kernels']}, {machine['date']}")
    for sampler in SAMPLERS:
        evaluations = len(sampler_steps(sampler, scheduler, timesteps).timesteps)
        cells = [f"batch {b}: {1e6 * statistics.median(taken[sampler, b]) / evaluations:5.1f}" for b in BATCHES]
        print(f"{sampler:16}", *cells)


if __name__ == "__main__":
    main()
