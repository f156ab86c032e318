"""Frechet distance of 8x8 digits by number of steps, for each sampler: results/samplers/*.csv and docs/samplers.png.

    fastdiff train digits && python benchmarks/samplers_quality.py runs/digits [--threads N] [--most MINUTES]

As many samples as there are real digits, 1,797, of the same classes, without guidance, in pixel space. Steps are evaluations
of the network: Heun makes half as many steps. What is measured is written at once and not measured again for the same weights,
so that it can be stopped and goes on where it was; the cells that the goal names come first.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from record import file_name, measured_on, write_rows
from report import write_results

import fastdiff
from fastdiff.data import load_dataset
from fastdiff.evaluation import frechet_distance, pixels, real_vs_real
from fastdiff.memory import keep_freed_memory
from fastdiff.training.checkpoint import find_checkpoint
from fastdiff.training.precision import autocast
from fastdiff.visualization import line_chart

HERE = Path(__file__).parent
COLUMNS = ("date", "commit", "device", "torch", "weights", "sampler", "spacing", "steps", "seed", "n", "frechet", "floor")
STEPS = (5, 10, 20, 50, 100, 250)
# Each with the timesteps that serve it; euler and euler_ancestral on timesteps are ddim and ddpm.
SETTINGS = [
    ("ddpm", "trailing"),
    ("ddim", "trailing"),
    ("euler", "karras"),
    ("euler_ancestral", "karras"),
    ("heun", "karras"),
    ("dpmpp_2m", "trailing"),
    ("dpmpp_2m", "karras"),
    ("dpmpp_2m_sde", "trailing"),
    ("dpmpp_2m_sde", "karras"),
    ("unipc", "trailing"),
    ("unipc", "karras"),
]
SEEDS = (0, 1, 2)
BATCH = 600

Cell = tuple[str, str, int, int]


def cells() -> Iterator[Cell]:
    """The goal's first, then cheap before dear. Where many steps leave the samplers level, one seed."""
    yield from (("dpmpp_2m", spacing, 20, seed) for spacing in ("trailing", "karras") for seed in SEEDS)
    yield from (("ddpm", "trailing", 250, seed) for seed in SEEDS)
    for seeds, steps in [(SEEDS[:1], STEPS[:4]), (SEEDS[1:], STEPS[:3]), (SEEDS[:1], STEPS[4:])]:
        yield from ((*setting, count, seed) for count in steps for seed in seeds for setting in SETTINGS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path, help="run folder of digits")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--most", type=float, default=60, metavar="MINUTES", help="stop after the cell that is under way then")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    keep_freed_memory()
    measure(args.run, args.most)
    print(write_results())


def measure(run: Path, most: float) -> None:
    machine = {key: value for key, value in measured_on().items() if key in COLUMNS}
    out = HERE / "results" / "samplers" / file_name(machine["device"])
    weights = hashlib.sha256(find_checkpoint(run).with_suffix(".safetensors").read_bytes()).hexdigest()[:10]
    model = fastdiff.load(run).to(memory_format=torch.channels_last)
    parts = [load_dataset("digits", split) for split in ("train", "validation", "test")]
    labels, real = torch.cat([p.labels for p in parts]), pixels(torch.cat([p.images for p in parts]))
    floor = real_vs_real(real, len(real) // 2)
    done = {key(row): row for row in rows_of(out) if row["weights"] == weights}
    begin = time.perf_counter()
    for cell in dict.fromkeys(cells()):
        if cell in done:
            continue
        if time.perf_counter() - begin > 60 * most:
            break
        sampler, spacing, steps, seed = cell
        with autocast("auto", torch.device("cpu")):
            images = model.sample(
                (len(real), *model.image_shape),
                labels=labels,
                sampler=sampler,
                spacing=spacing,
                steps=(steps + 1) // 2 if sampler == "heun" else steps,
                seed=seed,
                batch_size=BATCH,
            )
        distance = frechet_distance(pixels(images.float().clamp(-1, 1)), real)
        named = dict(zip(("sampler", "spacing", "steps", "seed"), cell, strict=True))
        measured = {"n": len(real), "frechet": f"{distance:.4f}", "floor": f"{floor:.4f}", "weights": weights}
        done[cell] = machine | named | measured
        write_rows(out, COLUMNS, list(done.values()), "device")
        print(*cell, done[cell]["frechet"], flush=True)
    plot(list(done.values()))


def rows_of(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.open())) if path.exists() else []


def key(row: dict[str, str]) -> Cell:
    return row["sampler"], row["spacing"], int(row["steps"]), int(row["seed"])


def plot(rows: list[dict]) -> None:
    """Seed 0, each sampler with the timesteps that are best for it at 20 steps: as many curves as the chart has colours."""
    series = {}
    for sampler, spacing in SETTINGS:
        if (sampler, spacing) in {("dpmpp_2m", "trailing"), ("dpmpp_2m_sde", "trailing"), ("unipc", "karras")}:
            continue
        points = sorted((key(r)[2], float(r["frechet"])) for r in rows if key(r)[:2] == (sampler, spacing) and key(r)[3] == 0)
        if points:
            series[f"{sampler}, {spacing}"] = tuple(zip(*points, strict=True))
    chart = line_chart(
        series, "Digits: Frechet distance by evaluations of the network", "evaluations", "Frechet distance",
        log_x=True, log_y=True,
    )  # fmt: skip
    chart.save(HERE.parent / "docs" / "samplers.png")


if __name__ == "__main__":
    main()
