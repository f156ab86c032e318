"""Times a U-Net's training and sampling step on a GPU, on fastdiff's layers and on torch's own.

    python benchmarks/gpu_unet.py --out FILE.csv [--seconds 90] [--device cuda]

The U-Net of Ho et al. 2020 for 32x32 images, batch 128, autocast to bf16, AdamW (fused), in one process with variants in turn,
eager ones first. The torch side is what a user of torch alone would write: `torch_layers.py`, `rivals.py`, torch's noise.
Compiled ones use torch.compile's default mode, and begin in the first half of --seconds or not at all.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from gpu_ops import Table
from record import measured_on
from rivals import sampler_step
from timing import interleaved
from torch import nn
from torch.nn import functional as F
from torch_layers import with_torch_layers

from fastdiff import ops
from fastdiff.diffusion import DiffusionModel
from fastdiff.models import UNet

COLUMNS = ("date", "commit", "device", "threads", "torch", "kernels", "config", "side", "format", "precision", "mode", "part",
           "median_ms", "p20_ms", "p80_ms")  # fmt: skip
FORMATS = {"channels_last": torch.channels_last, "NCHW": torch.contiguous_format}
SETTINGS = [
    ("fastdiff", "channels_last", "eager"),
    ("torch", "channels_last", "eager"),
    ("fastdiff", "NCHW", "eager"),
    ("torch", "NCHW", "eager"),
    ("torch", "channels_last", "compile"),
    ("fastdiff", "channels_last", "compile"),
]
COEFFICIENTS = (1.1, -0.4, 0.6, 0.5, 0.0, 0.0)  # of a deterministic step


class Side:
    """One network with its optimizer, in one setting."""

    def __init__(self, side: str, layout: str, mode: str, device: str, tiny: bool) -> None:
        torch.manual_seed(0)
        self.device, self.own, self.layout = device, side == "fastdiff", FORMATS[layout]
        if tiny:
            network, self.batch, size = UNet(3, 16, 32, (1, 2), 1, (2,)), 2, 8
        else:
            network, self.batch, size = UNet(3, 128, 512, (1, 2, 2, 2), 2, (2,)), 128, 32
        nn.init.normal_(network.conv_out.weight, std=0.02)  # zero at first, which would make all outputs alike
        self.shape = (self.batch, 3, size, size)
        self.model = DiffusionModel(network=network).to(device, memory_format=self.layout).train()
        if not self.own:
            with_torch_layers(network)
        if mode == "compile":
            network.compile(dynamic=False)
        self.optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=True)
        self.x0 = (torch.rand(self.shape, device=device) * 2 - 1).contiguous(memory_format=self.layout)
        self.seeds = ops.image_seeds(0, self.batch, device)
        self.step = torch.zeros((), dtype=torch.int64, device=device)
        self.row = torch.tensor(COEFFICIENTS, device=device)

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device, torch.bfloat16)

    def train(self) -> torch.Tensor:
        self.optimizer.zero_grad(set_to_none=True)
        with self.autocast():
            loss = self.model.keyed_loss(self.x0, None, self.seeds, self.step) if self.own else self.torch_loss()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.network.parameters(), 1.0)
        self.optimizer.step()
        return loss.detach()

    def torch_loss(self) -> torch.Tensor:
        schedule = self.model.scheduler
        t = torch.randint(schedule.timesteps, (self.batch,), device=self.device)
        noise = torch.randn_like(self.x0)
        signal, sigma = (
            v[t][:, None, None, None] for v in (schedule.sqrt_alphas_cumprod, schedule.sqrt_one_minus_alphas_cumprod)
        )
        return F.mse_loss(self.model.network(signal * self.x0 + sigma * noise, t).float(), noise)

    def predict(self, x: torch.Tensor) -> torch.Tensor:
        t = torch.arange(self.batch, device=self.device) * 7
        with torch.no_grad(), self.autocast():
            return self.model.network(x, t).float()

    def sample(self) -> Any:
        m = self.predict(self.x0)
        with torch.no_grad():
            if self.own:
                return ops.sampler_step(self.x0, m, self.row, clip=1.0)
            return sampler_step(self.x0, m, None, self.row, 1.0)


def check(sides: dict[str, Side]) -> None:
    """One input gives one output, but for the rounding of bf16: else the times compare different things."""
    x = torch.rand(next(iter(sides.values())).shape, generator=torch.Generator().manual_seed(1))
    outputs = {name: side.predict(x.to(side.device).contiguous(memory_format=side.layout)) for name, side in sides.items()}
    first = next(iter(outputs.values()))
    for name, y in outputs.items():
        error = float((y - first).norm() / first.norm())
        print(f"{name}: differs by {error:.1e} of the norm", flush=True)
        if not error < 0.1:
            raise AssertionError(f"{name} computes something else: {error:.1e}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seconds", type=float, default=90)
    parser.add_argument("--tiny", action="store_true", help="a network for a trial run on a CPU, two rounds")
    args = parser.parse_args()
    began = time.monotonic()
    torch.backends.cudnn.benchmark = True
    table, machine = Table(args.out, COLUMNS), measured_on(args.device) | {"config": "U-Net 32x32, batch 128"}
    rounds = 2 if args.tiny else 15

    def measure(sides: dict[str, Side], part: str) -> None:
        calls: dict[str, Callable[[], Any]] = {name: getattr(side, part) for name, side in sides.items()}
        for name, t in interleaved(calls, rounds, args.device, head_start=False).items():
            side, layout, mode = name.split()
            ms = {f"{k}_ms": f"{1e3 * getattr(t, k):.3f}" for k in ("median", "p20", "p80")}
            row = {"side": side, "format": layout, "precision": "bf16", "mode": mode, "part": part} | ms
            table.write(machine | row)
            print(part, name, ms["median_ms"], "ms a step", flush=True)

    for mode in ("eager", "compile"):
        sides = {" ".join(s): Side(*s, args.device, args.tiny) for s in SETTINGS if s[2] == mode}
        check({"as built": Side(*SETTINGS[0], args.device, args.tiny)} | sides)  # before training changes weights
        for part in ("sample", "train"):
            print(f"{mode} {part}, after {time.monotonic() - began:.0f} s", flush=True)
            if mode == "compile" and time.monotonic() - began > args.seconds / 2:
                print("left out for want of time", flush=True)
                return
            measure(sides, part)


if __name__ == "__main__":
    main()
