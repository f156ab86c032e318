"""Times the main job, a training step and sampling, beside the same model on torch's own layers: results/main_job/*.csv.

    python benchmarks/main_job.py [digits|mnist] [--rounds N]

Each side runs in every setting it has (memory format, precision, torch.compile), each in a process of its own; the processes
take turns. The torch side is what a user of torch alone would write: GroupNorm, FiLM and SiLU as `rivals.py` has them, fused
attention, torch's noise, AdamW (fused), clip_grad_norm_, AveragedModel, a batch by indexing. Both sides keep freed memory.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from record import THREADS, file_name, measured_on
from report import write_results
from torch import nn
from torch.nn import functional as F
from torch_layers import with_torch_layers

from fastdiff.config import Config, build_model, load_config
from fastdiff.data import ImageDataset, load_dataset
from fastdiff.diffusion import DiffusionModel
from fastdiff.memory import keep_freed_memory
from fastdiff.training import Trainer
from fastdiff.training.callbacks import Callback, draw_samples

HERE = Path(__file__).parent
STEPS, SAMPLING_STEPS, SAMPLES = 10, 10, 64  # of one turn
SETTINGS = ("side", "format", "precision", "mode")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("config", nargs="?", default="digits", choices=("digits", "mnist"))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--worker", nargs=4, metavar=SETTINGS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return work(args.config, *args.worker)
    rows = measure(args.config, args.rounds)
    print(write_csv(args.config, rows))
    print(write_results())


def measure(config: str, rounds: int) -> list[dict]:
    settings = [
        *itertools.product(("fastdiff", "torch"), ("NCHW", "channels_last"), ("fp32", "bf16"), ("eager", "compile")),
    ]
    command = [sys.executable, __file__, config, "--worker"]
    workers = {s: subprocess.Popen([*command, *s], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for s in settings}
    taken: dict[tuple, list[float]] = {}
    try:
        for part in ("train", "sample"):
            for turn in range(rounds + 1):  # the first turn warms up
                for setting, worker in workers.items():
                    print(part, file=worker.stdin, flush=True)
                    line = worker.stdout.readline()
                    if not line:
                        raise RuntimeError(f"{' '.join(setting)} ended with {worker.wait()}")
                    if turn:
                        taken.setdefault((*setting, part), []).append(float(line))
            for setting in settings:
                print(part, *setting, f"{1e3 * statistics.median(taken[*setting, part]):.2f} ms a step", flush=True)
    finally:
        for worker in workers.values():
            worker.kill()
    return [dict(zip((*SETTINGS, "part"), key, strict=True), **summary(seconds)) for key, seconds in taken.items()]


def summary(seconds: list[float]) -> dict[str, str]:
    fifths = statistics.quantiles(seconds, n=5)
    return {
        name: f"{1e3 * v:.2f}"
        for name, v in (("median_ms", statistics.median(seconds)), ("p20_ms", fifths[0]), ("p80_ms", fifths[3]))
    }


def work(name: str, side: str, layout: str, precision: str, mode: str) -> None:
    """Trains for ever, and after every STEPS steps waits for a line on stdin, to which it answers seconds."""
    keep_freed_memory()
    torch.set_num_threads(THREADS)
    options = ["--training.precision", precision, "--training.channels_last", str(layout == "channels_last").lower()]
    config = load_config(name, [*options, "--training.compile", str(mode == "compile").lower(), "--training.steps", "10000000"])
    data = load_dataset(name, "train", config.data.root)
    torch.manual_seed(0)
    model = build_model(config, data.img_shape, data.num_classes)
    if side == "torch":
        with_torch_layers(model.network)
        train_with_torch(config, model, data)
    else:
        config = replace(config, diffusion=replace(config.diffusion, sampling_steps=SAMPLING_STEPS))
        Trainer(config.training, [Turns(partial(draw_samples, model, SAMPLES, config, 0), precision)]).fit(model, data)


class Turns(Callback):
    """Lets a training loop go on for STEPS steps whenever "train" comes in, and samples at "sample"."""

    def __init__(self, sample: Callable[[], Any], precision: str) -> None:
        self._sample = sample
        self._autocast = partial(torch.autocast, "cpu", torch.bfloat16, enabled=precision == "bf16")
        self._left = 1

    def step(self, trainer: Trainer | None = None) -> None:
        self._left -= 1
        if self._left:
            return
        if hasattr(self, "_begin"):
            print((time.perf_counter() - self._begin) / STEPS, flush=True)
        for line in sys.stdin:
            self._begin = time.perf_counter()
            if line.strip() == "train":
                self._left = STEPS
                return
            with torch.no_grad(), self._autocast():
                self._sample()
            print((time.perf_counter() - self._begin) / SAMPLING_STEPS, flush=True)
        sys.exit()


def train_with_torch(config: Config, model: DiffusionModel, data: ImageDataset) -> None:
    """The loop that a user of torch writes: the trainer's task, with torch's parts."""
    training = config.training
    layout = torch.channels_last if training.channels_last else torch.contiguous_format
    network = model.network.to(memory_format=layout).train()
    run = torch.compile(network, dynamic=False) if training.compile else network
    signal, sigma = (
        v.reshape(-1, 1, 1, 1) for v in (model.scheduler.sqrt_alphas_cumprod, model.scheduler.sqrt_one_minus_alphas_cumprod)
    )
    optimizer = torch.optim.AdamW(network.parameters(), lr=training.lr, fused=True)
    average = torch.optim.swa_utils.AveragedModel(
        network, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(training.ema_decay)
    )
    turns = Turns(partial(sample_with_torch, config, model, run), training.precision)
    turns.step()
    while True:
        for rows in torch.randperm(len(data.images)).split(training.batch_size)[: len(data.images) // training.batch_size]:
            x0, labels = data.images[rows].contiguous(memory_format=layout), data.labels[rows]
            t, noise = torch.randint(model.timesteps, (len(rows),)), torch.randn_like(x0)
            labels = torch.where(torch.rand(len(rows)) < model.label_dropout, model.num_classes, labels)
            xt = signal[t] * x0 + sigma[t] * noise
            target = noise if model.prediction == "eps" else signal[t] * noise - sigma[t] * x0
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=training.precision == "bf16"):
                loss = F.mse_loss(run(xt, t, labels).float(), target)
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), training.clip_norm)
            optimizer.step()
            average.update_parameters(network)
            loss.item()
            turns.step()


def sample_with_torch(config: Config, model: DiffusionModel, network: Callable[..., torch.Tensor]) -> torch.Tensor:
    """DDIM with guidance, as in `draw_samples`, in torch's operators."""
    abar = model.scheduler.alphas_cumprod
    x = torch.randn(SAMPLES, *model.image_shape)
    labels = torch.arange(SAMPLES) % model.num_classes
    both = torch.cat([labels, torch.full_like(labels, model.num_classes)])
    timesteps = torch.linspace(model.timesteps - 1, -1, SAMPLING_STEPS + 1).round().long()
    for t, following in itertools.pairwise(timesteps):
        m, plain = network(torch.cat([x, x]), t.expand(2 * SAMPLES), both).float().chunk(2)
        m = plain + config.diffusion.guidance * (m - plain)
        a, a_next = abar[t], abar[following] if following >= 0 else torch.ones(())
        x0 = ((x - (1 - a).sqrt() * m) / a.sqrt() if model.prediction == "eps" else a.sqrt() * x - (1 - a).sqrt() * m).clamp(
            -1, 1
        )
        x = a_next.sqrt() * x0 + (1 - a_next).sqrt() * (x - a.sqrt() * x0) / (1 - a).sqrt()
    return x


def write_csv(config: str, rows: list[dict]) -> Path:
    machine = measured_on() | {"config": config}
    path = HERE / "results" / "main_job" / f"{config}-{file_name(machine['device'])}"
    path.parent.mkdir(exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*machine, *rows[0]])
        writer.writeheader()
        writer.writerows(machine | row for row in rows)
    return path


if __name__ == "__main__":
    main()
