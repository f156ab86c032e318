"""Interleaved timing: every variant once per round, so that a drift of the machine's speed meets all of them alike.

On a GPU by events. Calls are queued behind a kernel that only waits, so that they run back to back and a call's time on the
host counts only where it is longer than on the GPU for the whole queue.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

MIN_SECONDS = 0.002  # a timing is of at least as many calls as take this long, so that the clock does not count
HEAD_START = 0.003  # seconds that the GPU waits while calls are queued
CYCLES_PER_SECOND = 2e9  # of a GPU, or somewhat fewer
CALLS_AT_MOST = 20  # in a queue
CALLS_IN_A_ROW = 3  # where the GPU does not wait for them: the first one hides the host's way into the next


@dataclass(frozen=True)
class Timing:
    """Seconds per call: median and 20th and 80th percentile over the rounds."""

    median: float
    p20: float
    p80: float


def interleaved(
    variants: Mapping[str, Callable[[], Any]], rounds: int = 31, device: str = "cpu", head_start: bool = True
) -> dict[str, Timing]:
    """Time each variant `rounds` times, in turn, after a warm-up of each. head_start: a GPU's calls are queued, see above."""
    on_gpu = torch.device(device).type == "cuda"
    repeats = {}
    for name, call in variants.items():
        for _ in range(3):
            call()
        if on_gpu:
            torch.cuda.synchronize()
        host = max(_seconds(call, 1), 1e-7)
        if on_gpu:
            torch.cuda.synchronize()
            repeats[name] = min(max(1, int(0.7 * HEAD_START / host)), CALLS_AT_MOST) if head_start else CALLS_IN_A_ROW
        else:
            repeats[name] = max(1, round(MIN_SECONDS / host))
    taken: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, call in variants.items():
            seconds = _gpu_seconds(call, repeats[name], head_start) if on_gpu else _seconds(call, repeats[name])
            taken[name].append(seconds)
    return {name: _summary(seconds) for name, seconds in taken.items()}


def _gpu_seconds(call: Callable[[], Any], repeats: int, head_start: bool) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    if head_start:
        torch.cuda._sleep(int(HEAD_START * CYCLES_PER_SECOND))
    begin.record()
    for _ in range(repeats):
        call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3 / repeats


def _seconds(call: Callable[[], Any], repeats: int) -> float:
    begin = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - begin) / repeats


def _summary(seconds: list[float]) -> Timing:
    fifths = statistics.quantiles(seconds, n=5)
    return Timing(statistics.median(seconds), fifths[0], fifths[3])
