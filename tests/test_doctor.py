"""`fastdiff doctor` says what is there and finds an op that is wrong."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from fastdiff import doctor, ops
from fastdiff.cli import main


def test_all_is_well_here(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert "all well" in text
    for name, op in ops.REGISTRY.items():
        line = next(line for line in text.splitlines() if line.startswith(f"{name} "))
        assert ("native" in line) == op.compiled("CPU")
    assert torch.__version__ in text


def test_a_wrong_op_is_found(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    film = ops.REGISTRY["film"]

    class Off(ops.Op):
        def __call__(self, *args):
            return film(*args) + 1e-3

    off = Off(**{f.name: getattr(film, f.name) for f in dataclasses.fields(film)})
    monkeypatch.setitem(ops.REGISTRY, "film", off)
    lines, healthy = doctor.examine()
    assert not healthy
    assert any(line.startswith("film ") and "WRONG" in line for line in lines)
    assert main(["doctor"]) == 1
    assert "something is wrong" in capsys.readouterr().out


def test_a_missing_library_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    if ops.build_record()["requested"] == "none":
        pytest.skip("nothing was to be compiled here, so nothing is missing")
    monkeypatch.setattr(ops, "native", dataclasses.replace(ops.native, path=None))
    lines, healthy = doctor.examine()
    assert not healthy
    assert any("no kernel library is loaded" in line for line in lines)


def test_amx_that_was_refused_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    if ops.native.path is None:
        pytest.skip("the kernel library says which instruction sets there are, and none is loaded")
    from fastdiff import _C

    refused = "AMX is there, but the system did not lend its registers to this process"
    monkeypatch.setattr(_C, "build_info", lambda: {"compiler": "", "cpu": ["amx"], "cuda": "", "cuda_architectures": []})
    monkeypatch.setattr(_C, "cpu_features", lambda: {"amx_bf16": True})
    monkeypatch.setattr(doctor, "_check", lambda *_: (0.0, ""))
    for cap, level, named in (
        ("", "avx512_bf16", True),
        ("amx", "avx512_bf16", True),
        ("avx512", "avx512", False),
        ("", "amx", False),
    ):
        monkeypatch.setenv("FASTDIFF_CPU", cap)
        monkeypatch.setattr(ops, "native", dataclasses.replace(ops.native, cpu_level=level))
        lines, _ = doctor.examine()
        assert any(refused in line for line in lines) is named


@pytest.mark.parametrize(
    ("capability", "architectures", "expected"),
    [
        ((8, 0), "80-real 90a-real 90-virtual", True),
        ((8, 9), "80-real 90a-real 90-virtual", True),  # machine code of the same major version
        ((9, 0), "80-real 90a-real 90-virtual", True),
        ((12, 0), "80-real 90a-real 90-virtual", True),  # PTX
        ((7, 5), "80-real 90a-real 90-virtual", False),
        ((7, 5), "75", False),  # not supported whatever the build
        ((9, 0), "90a-real", True),
        ((10, 0), "90a-real", False),
        ((10, 0), "90a", False),
        ((8, 0), "86-real", False),
        ((8, 0), "90", False),
        ((12, 1), "120f-real", True),
        ((9, 0), "80-real", False),
        ((9, 0), "native", True),
    ],
)
def test_which_gpus_a_build_is_for(capability: tuple[int, int], architectures: str, expected: bool) -> None:
    assert doctor.runs_on(capability, architectures.split()) is expected


def test_a_gpu_without_code_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Old GPU")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    monkeypatch.setattr(doctor, "_architectures", lambda: ["80-real", "90a-real", "90-virtual"])
    lines, healthy = doctor.examine()
    assert not healthy
    assert any("compute capability 7.5" in line for line in lines)
    assert any("built for 80-real 90a-real 90-virtual and do not run on this GPU" in line for line in lines)


def test_a_kernel_that_does_not_run_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    film = ops.REGISTRY["film"]

    class Broken(ops.Op):
        def __call__(self, *args):
            raise RuntimeError("CUDA: no kernel image")

    broken = Broken(**{f.name: getattr(film, f.name) for f in dataclasses.fields(film)})
    monkeypatch.setitem(ops.REGISTRY, "film", broken)
    lines, healthy = doctor.examine()
    assert not healthy
    assert any(line.startswith("film ") and "WRONG: CUDA: no kernel image" in line for line in lines)
