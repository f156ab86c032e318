"""One side of `peers.py` in a process of its own: prepares what it is told to, and calls it as often as it is told to."""

from __future__ import annotations

import random
import re
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

import fastdiff
from fastdiff.diffusion import NoiseScheduler, sample
from fastdiff.memory import keep_freed_memory
from fastdiff.models import UNet

TURN = 0.25  # seconds that a peer's calls of one round take, about
CALLS_AT_MOST = 10
LONG = 1.0  # seconds of a call that needs no other before it
PAUSE = 0.05  # seconds for the threads of the one before to fall asleep
TIMESTEPS = 1000


@dataclass(frozen=True)
class Peer:
    """side: fastdiff, diffusers or OpenVINO; how: eager or compile; precision: bf16, fp32, or ours `highest` and `high`."""

    side: str
    precision: str
    layout: str = "NCHW"
    how: str = "eager"

    @property
    def name(self) -> str:
        parts = (self.side, self.how, self.precision, self.layout) if self.side == "diffusers" else (self.side, self.precision)
        return " ".join(parts)

    @property
    def ours(self) -> bool:
        return self.side == "fastdiff"

    @property
    def format(self) -> torch.memory_format:
        return torch.channels_last if self.layout == "channels_last" else torch.contiguous_format

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.precision == "bf16" else torch.float32


@dataclass(frozen=True)
class Case:
    """What is computed: forward, sampling or training, of which network at which batch; steps: of sampling."""

    job: str
    folder: str
    batch: int
    size: int
    channels: int
    steps: int = 0

    def images(self) -> torch.Tensor:
        return torch.randn(self.batch, self.channels, self.size, self.size, generator=torch.Generator().manual_seed(1))

    def timesteps(self) -> torch.Tensor:
        return torch.arange(self.batch) * (TIMESTEPS // self.batch)


class Plain(nn.Module):
    """diffusers' network as a function from tensors to a tensor."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return self.unet(x, t, return_dict=False)[0]


def theirs(folder: str) -> Plain:
    import diffusers

    diffusers.utils.logging.set_verbosity_error()
    return Plain(diffusers.UNet2DModel.from_pretrained(folder, low_cpu_mem_usage=False)).eval()


Network = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def network(peer: Peer, case: Case) -> Network:
    """denoise(x, t) in the peer's precision; ours takes float32 images, diffusers' what it computes in."""
    return _openvino(peer, case) if peer.side == "OpenVINO" else _of_torch(peer, case.folder)


@cache  # a network that is compiled for a case's shapes serves the next case of these shapes
def _of_torch(peer: Peer, folder: str) -> Network:
    if peer.ours:
        if peer.precision in ("highest", "high"):
            fastdiff.set_float32_precision(peer.precision)
        return UNet.from_diffusers(folder)
    net = theirs(folder).to(peer.dtype).to(memory_format=peer.format)
    return _compiled(net) if peer.how == "compile" else net


def _compiled(net: nn.Module) -> Network:
    """With the weights as constants, packed ahead: 15 % faster here than without."""
    from torch._inductor import config

    config.freezing = True
    warnings.filterwarnings("ignore", message="Dynamo detected a call to a `functools.lru_cache`")
    return torch.compile(net, dynamic=False)


def _openvino(peer: Peer, case: Case) -> Network:
    import openvino
    from openvino.properties import hint, inference_num_threads

    x, t = case.images(), case.timesteps()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of tracing
        model = openvino.convert_model(theirs(case.folder), example_input=(x, t), input=[list(x.shape), list(t.shape)])
    precision = {"bf16": openvino.Type.bf16, "fp32": openvino.Type.f32}[peer.precision]
    options = {
        hint.inference_precision: precision,
        hint.performance_mode: hint.PerformanceMode.LATENCY,
        inference_num_threads: torch.get_num_threads(),
    }
    compiled = openvino.Core().compile_model(model, "CPU", options)
    executed: Counter[str] = Counter()
    for node in compiled.get_runtime_model().get_ops():
        info = node.get_rt_info()
        if info["layerType"].astype(str) == "Convolution":
            executed[info["runtimePrecision"].astype(str)] += 1
    if set(executed) != {precision.get_type_name()}:
        raise RuntimeError(f"OpenVINO was to convolve in {precision.get_type_name()}, it does in {dict(executed)}")
    request = compiled.create_infer_request()
    return lambda x, t: torch.from_numpy(request.infer([x.numpy(), t.numpy()])[0])


def autocast(peer: Peer) -> AbstractContextManager[Any]:
    return torch.autocast("cpu", torch.bfloat16) if peer.precision == "bf16" else nullcontext()


def forward(peer: Peer, case: Case) -> Callable[[], torch.Tensor]:
    net, x, t = network(peer, case), case.images(), case.timesteps()
    if peer.side == "diffusers":
        x = x.to(peer.dtype).clone(memory_format=peer.format)

    def call() -> torch.Tensor:
        with torch.no_grad(), autocast(peer) if peer.ours else nullcontext():
            return net(x, t)

    return call


def sampling(peer: Peer, case: Case) -> Callable[[], torch.Tensor]:
    """DDIM from the same noise: ours by `sample`, theirs by the loop that diffusers' documentation gives.

    Unclipped: after clipping x0 diffusers goes on with the network's noise, ours with the noise that fits the clipped x0.
    """
    net, start = network(peer, case), case.images()
    if peer.ours:
        scheduler, shape = NoiseScheduler(TIMESTEPS), tuple(start.shape)

        def ours() -> torch.Tensor:
            with autocast(peer):
                return sample(net, scheduler, shape, sampler="ddim", steps=case.steps, x_start=start, clip=None)

        return ours

    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(TIMESTEPS, beta_start=1e-4, beta_end=0.02, clip_sample=False)
    scheduler.set_timesteps(case.steps)

    def loop() -> torch.Tensor:
        x = start.to(peer.dtype)
        with torch.no_grad():
            for t in scheduler.timesteps:
                x = x.clone(
                    memory_format=peer.format
                )  # with the strides that the network was compiled for, and as its timesteps
                x = scheduler.step(net(x, t.repeat(case.batch)), t, x).prev_sample
        return x

    return loop


def training(peer: Peer, case: Case) -> Callable[[], torch.Tensor]:
    """Forward, backward and AdamW on float32 weights. Returns the gradient of the first convolution's weight."""
    net = UNet.from_diffusers(case.folder) if peer.ours else theirs(case.folder)
    net = net.train().to(memory_format=peer.format)
    x, t = case.images().contiguous(memory_format=peer.format), case.timesteps()
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(2))
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4, fused=True)
    first = (net if peer.ours else net.unet).conv_in.weight

    def call() -> torch.Tensor:
        with autocast(peer):
            loss = F.mse_loss(net(x, t).float(), noise)
        loss.backward()
        gradient = first.grad.clone()
        optimizer.step()
        optimizer.zero_grad()
        return gradient

    return call


JOBS = {"forward": forward, "sampling": sampling, "training": training}


class _Process:
    def __init__(self, peer: Peer) -> None:
        self.peer, self.call, self.before = peer, None, 0

    def prepare(self, case: Case) -> np.ndarray:
        """The output of the first call."""
        self.call = None  # what was prepared before need not stay in memory
        self.call = JOBS[case.job](self.peer, case)
        self.before = _memory("VmRSS")
        return self.call().float().numpy().copy()

    def turn(self) -> list[float]:
        """Seconds of each call, after one that brings weights back into the caches."""
        first = self._seconds()
        if first > LONG:
            return [first]
        return [self._seconds() for _ in range(max(1, min(CALLS_AT_MOST, round(TURN / first))))]

    def _seconds(self) -> float:
        begin = time.perf_counter()
        self.call()
        return time.perf_counter() - begin

    def memory(self) -> tuple[int, int]:
        """Of the process in MB: at its peak, and of that what was not there before the first call."""
        peak = _memory("VmHWM")
        return peak, peak - self.before


def _memory(key: str) -> int:
    return int(re.search(rf"{key}:\s+(\d+)", Path("/proc/self/status").read_text())[1]) // 1024


def _serve(connection: Connection, peer: Peer, threads: int) -> None:
    keep_freed_memory()
    torch.set_num_threads(threads)
    process = _Process(peer)
    while (message := connection.recv()) is not None:
        command, *arguments = message
        try:
            connection.send((None, getattr(process, command)(*arguments)))
        except Exception as error:  # whatever a rival raises goes to the process that measures, which says whose it is
            connection.send((f"{peer.name}: {error}", traceback.format_exc()))


class Running:
    """A peer's process, seen from the one that measures."""

    def __init__(self, peer: Peer, threads: int) -> None:
        context = get_context("spawn")  # a fork would share the parent's threads and libraries
        self._connection, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other, peer, threads))
        self._process.start()

    def tell(self, command: str, *arguments: Any) -> None:
        self._connection.send((command, *arguments))

    def answer(self) -> Any:
        """To what it was told. Raises RuntimeError with what the process says went wrong."""
        error, reply = self._connection.recv()
        if error is not None:
            raise RuntimeError(f"{error}\n{reply}")
        return reply

    def ask(self, command: str, *arguments: Any) -> Any:
        self.tell(command, *arguments)
        return self.answer()

    def end(self) -> None:
        self._connection.send(None)
        self._process.join()


def in_turns(running: Mapping[str, Running], rounds: int) -> dict[str, list[float]]:
    """Seconds of each round's median call: one peer at work at a time, in an order that is new in each round."""
    order, shuffled = list(running), random.Random(0)
    taken: dict[str, list[float]] = {name: [] for name in order}
    for _ in range(rounds):
        shuffled.shuffle(order)
        for name in order:
            time.sleep(PAUSE)
            taken[name].append(float(np.median(running[name].ask("turn"))))
    return taken
