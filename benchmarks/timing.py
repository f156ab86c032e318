"""Interleaved timing: every variant once per round, so that a drift of the machine's speed meets all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

MIN_SECONDS = 0.002  # a timing is of at least as many calls as take this long, so that the clock does not count


@dataclass(frozen=True)
class Timing:
    """Seconds per call: median and 20th and 80th percentile over the rounds."""

    median: float
    p20: float
    p80: float


def interleaved(variants: Mapping[str, Callable[[], Any]], rounds: int = 31) -> dict[str, Timing]:
    """Time each variant `rounds` times, in turn, after a warm-up of each."""
    repeats = {}
    for name, call in variants.items():
        for _ in range(3):
            call()
        repeats[name] = max(1, round(MIN_SECONDS / max(_seconds(call, 1), 1e-7)))
    taken: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, call in variants.items():
            taken[name].append(_seconds(call, repeats[name]))
    return {name: _summary(seconds) for name, seconds in taken.items()}


def _seconds(call: Callable[[], Any], repeats: int) -> float:
    begin = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - begin) / repeats


def _summary(seconds: list[float]) -> Timing:
    fifths = statistics.quantiles(seconds, n=5)
    return Timing(statistics.median(seconds), fifths[0], fifths[3])
