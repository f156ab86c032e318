"""What `benchmarks/peers.py` runs of ours: its jobs compute what they say, and the parts of a forward are all of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from oracle import needs_kernel
from peer_breakdown import REST, breakdown, timed_ops
from peer_process import Case, Peer, forward, sampling, training
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fastdiff.models import UNet


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a network without zeros."""
    net = UNet(1, 32, 64, (1, 2), 1, (2,), sinusoid_dim=32, head_dim=8, groups=8)
    for module in net.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    return net.save_diffusers(tmp_path_factory.mktemp("network"))


@needs_kernel("conv2d_fused")
def test_a_breakdown_holds_all_of_a_forward(folder: Path) -> None:
    case = Case("forward", str(folder), 1, 8, 1)
    net = UNet.from_diffusers(case.folder).double()
    with torch.no_grad(), FlopCounterMode(display=False) as flops:
        net(case.images().double(), case.timesteps())
    call = forward(Peer("fastdiff", "bf16"), case)
    call()  # packs the weights
    with timed_ops() as kinds:
        call()
    counted = {
        name: sum(flop for kind, (_, flop) in kinds.items() if kind.startswith(name)) for name in ("conv2d", "attention")
    }
    of_time = [2 * m.weight.numel() for name, m in net.named_modules() if isinstance(m, nn.Linear) and "time" in name]
    assert counted["conv2d"] == flops.get_total_flops() - sum(of_time)  # which no op of ours makes
    assert counted["attention"] == 4 * 4 * 8 * 16 * 16 * 8  # four times q k^T and p v: 8 heads of 8, 4x4 pixels
    assert {kind.split()[0] for kind in kinds} == {"conv2d_fused", "norm_affine", "attention", "timestep_embedding"}
    rows = breakdown(Peer("fastdiff", "bf16"), case)
    assert {row["op"] for row in rows} == {*kinds, REST}
    assert all(float(row["ms"]) >= 0 for row in rows)


def test_our_jobs_compute_what_they_say(folder: Path) -> None:
    """One step of DDIM is the x0 of the network's noise."""
    case = Case("sampling", str(folder), 2, 8, 1, steps=1)
    peer = Peer("fastdiff", "highest")
    x = case.images()
    with torch.no_grad():
        noise = UNet.from_diffusers(case.folder)(x, torch.zeros(2))
    abar = 1 - 1e-4
    torch.testing.assert_close(sampling(peer, case)(), (x - (1 - abar) ** 0.5 * noise) / abar**0.5, rtol=1e-4, atol=1e-5)
    assert forward(peer, case)().shape == x.shape
    gradient = training(peer, case)()
    assert gradient.shape == (32, 1, 3, 3)
    assert gradient.any()
