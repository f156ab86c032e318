"""Every CUDA kernel in the simulator, held against float64 over the registry's samples; see README.md."""

from __future__ import annotations

import pytest
import torch
from cuda_sim.build import build, missing
from cuda_sim.calls import Simulated, cuda_samples, load, wrong

from fastdiff import ops

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))
NATIVE = [name for name, op in ops.REGISTRY.items() if "CUDA" in op.native]


@pytest.fixture(scope="module")
def simulated() -> dict[str, Simulated]:
    return load(build("plain"))


def test_no_cuda_kernel_is_without_its_simulation(simulated: dict[str, Simulated]) -> None:
    assert sorted(simulated) == sorted(NATIVE)


@pytest.mark.parametrize("order", ["up", "down", "1"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", NATIVE)
def test_values_match_the_truth(
    name: str, dtype: torch.dtype, order: str, simulated: dict[str, Simulated], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the order of threads and blocks."""
    monkeypatch.setenv("CUDA_SIM_ORDER", order)
    for sample in cuda_samples(ops.REGISTRY[name], dtype):
        assert not wrong(simulated[name], sample), sample.name


def test_noise_is_the_cpus_bit_for_bit(simulated: dict[str, Simulated]) -> None:
    for sample in cuda_samples(ops.REGISTRY["philox_normal"], torch.float32):
        got, cpu = simulated["philox_normal"](*sample.args), ops.REGISTRY["philox_normal"](*sample.args)
        assert torch.equal(got.view(torch.int32), cpu.view(torch.int32)), sample.name
