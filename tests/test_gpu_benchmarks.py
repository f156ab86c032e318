"""What `benchmarks/gpu.sh` runs on a GPU, run on the CPU at tiny sizes, and the report that is made of its rows."""

from __future__ import annotations

import csv
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import report
import torch
from gpu_cases import cases
from gpu_ops import COLUMNS as OP_COLUMNS
from gpu_unet import COLUMNS as UNET_COLUMNS

from fastdiff import ops

BENCHMARKS = Path(report.__file__).parent


@pytest.fixture
def script(tmp_path: Path) -> Callable[..., tuple[list[dict[str, str]], subprocess.CompletedProcess[str]]]:
    """Runs a script for the CPU, without compiling: the rows that it wrote, and how it ended."""

    def run(name: str, *arguments: str) -> tuple[list[dict[str, str]], subprocess.CompletedProcess[str]]:
        out = tmp_path / "rows.csv"
        command = [sys.executable, str(BENCHMARKS / name), "--out", str(out), "--device", "cpu", "--tiny", *arguments]
        environment = os.environ | {"TORCHDYNAMO_DISABLE": "1", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
        return list(csv.DictReader(out.read_text().splitlines())), done

    return run


def test_every_op_with_a_kernel_is_timed(script: Callable) -> None:
    rows, done = script("gpu_ops.py")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 failed, 0 left out" in done.stdout
    assert tuple(rows[0]) == OP_COLUMNS
    assert {r["op"] for r in rows} == set(report.gpu_kernels()) | {"ceiling"}
    assert {r["sample"] for r in rows if r["op"] == "ceiling"} == {"copy", "product"}
    for row in rows:
        assert float(row["median_us"]) > 0
        assert row["date"]
        assert row["op"] == "ceiling" or float(row["of_ceiling"]) > 0
    for case in cases(tiny=True):
        made = {r["variant"].split()[0] for r in rows if (r["op"], r["sample"]) == (case.checked, case.name)}
        assert {"fastdiff", "eager", "compile"} <= made, case.name


def test_what_the_time_does_not_suffice_for_is_left_out(script: Callable) -> None:
    rows, done = script("gpu_ops.py", "--seconds", "0")
    assert done.returncode == 0, done.stdout + done.stderr
    assert [r["op"] for r in rows] == ["ceiling", "ceiling"]
    assert f"0 failed, {len(list(cases(tiny=True)))} left out" in done.stdout


def test_a_unet_is_timed(script: Callable) -> None:
    rows, done = script("gpu_unet.py", "--seconds", "1000")
    assert done.returncode == 0, done.stdout + done.stderr
    assert tuple(rows[0]) == UNET_COLUMNS
    assert {(r["side"], r["mode"], r["part"]) for r in rows} == {
        (side, mode, part) for side in ("fastdiff", "torch") for mode in ("eager", "compile") for part in ("sample", "train")
    }


def test_calls_for_a_sanitizer() -> None:
    command = [sys.executable, str(BENCHMARKS / "gpu_calls.py"), "--device", "cpu", "--at-most", "1"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(f"{name}: " in done.stdout for name in ops.REGISTRY)


def test_an_op_that_is_wrong_gets_no_row(monkeypatch: pytest.MonkeyPatch) -> None:
    import dataclasses

    import gpu_ops

    case = next(c for c in cases(tiny=True) if c.op.name == "ddpm_step")

    class Off(ops.Op):
        def __call__(self, *args):
            return case.op(*args) + 0.1

    off = Off(**{f.name: getattr(case.op, f.name) for f in dataclasses.fields(case.op)})
    with pytest.raises(AssertionError, match=r"ddpm_step .* is above"):
        next(gpu_ops.measure(dataclasses.replace(case, op=off), "cpu", {}, {"copy": 1.0, "product": 1.0}, 2, False))


def test_flops_of_attention_are_those_of_its_products() -> None:
    case = next(c for c in cases(tiny=False) if c.op.name == "attention" and not c.backward)
    assert case.flops == 4 * 16 * 16 * 1024 * 1024 * 64  # q k^T and p v, two operations each
    back = next(c for c in cases(tiny=False) if c.op.name == "attention" and c.backward)
    assert back.flops == 5 * case.flops // 2


# ---- the report, from made-up rows ----

MACHINE = {
    "date": "2030-02-03",
    "commit": "abc",
    "device": "NVIDIA Made-Up",
    "threads": "16",
    "torch": "2.11.0",
    "kernels": "90a-real",
}


def _op_row(op: str, variant: str, median: float, **columns: str) -> dict[str, str]:
    row = {"op": op, "sample": "a size", "dtype": "bfloat16", "variant": variant, "median_us": str(median)}
    rest = {"p20_us": "1", "p80_us": "1", "bytes": "1000", "error": "1e-3", "bound": "4e-3", "flops": "", "gb_per_s": "2500"}
    return MACHINE | row | rest | {"tflop_per_s": "", "of_ceiling": "0.5"} | columns


def _write(path: Path, columns: tuple[str, ...], rows: list[dict[str, str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(report, "HERE", tmp_path)
    (tmp_path / "results" / "gpu").mkdir(parents=True)
    return tmp_path / "results" / "gpu"


def test_without_rows_no_gpu_has_run_anything(results: Path) -> None:
    text = report.write_results().read_text()
    assert text.count("no GPU has run it") == len(report.gpu_kernels())
    assert "`attention` | Triton | no GPU has run it" in text


def test_rows_of_a_gpu_are_rendered(results: Path) -> None:
    rows = [
        _op_row("ceiling", "torch", 700, sample="copy", gb_per_s="3000.0"),
        _op_row("ceiling", "torch", 1400, sample="product", tflop_per_s="790.0"),
        _op_row("film", "fastdiff", 20),
        _op_row("film", "copy", 15),
        _op_row("film", "eager NCHW", 90),
        _op_row("film", "eager channels_last", 60),
        _op_row("film", "compile NCHW", 30),
        _op_row("attention", "fastdiff", 100, tflop_per_s="400", error="2e-3"),
        _op_row("attention", "eager", 80),
    ]
    _write(results / "ops-made-up.csv", OP_COLUMNS, rows)
    text = report.write_results().read_text()
    assert "| `film` | CUDA | NVIDIA Made-Up | 2030-02-03 | 2.11.0 | 1e-3 | 25% |" in text
    assert "| `attention` | Triton | NVIDIA Made-Up | 2030-02-03 | 2.11.0 | 2e-3 | 50% |" in text
    assert "`film_backward` | CUDA | no GPU has run it" in text
    assert "a copy 3,000 GB/s, read and written, a bf16 matrix product 790 TFLOP/s" in text
    assert (
        "| film | a size | bfloat16 | 20.0 | 60.0 channels_last | 3.0 | 30.0 NCHW | 1.5 | 2,500 GB/s | 50% | 1e-3 | 4e-3 |"
        in text
    )
    assert "| attention | a size | bfloat16 | 100.0 | 80.0 | 0.8 |  |  | 400 TFLOP/s | 50% |" in text


def test_rows_of_a_unet_are_rendered(results: Path) -> None:
    rows = [
        MACHINE
        | {"config": "a U-Net", "side": side, "format": layout, "precision": "bf16", "mode": mode, "part": part}
        | {"median_ms": ms, "p20_ms": ms, "p80_ms": ms}
        for side, layout, mode, part, ms in (
            ("fastdiff", "NCHW", "eager", "train", "20"),
            ("fastdiff", "channels_last", "eager", "train", "10"),
            ("torch", "channels_last", "eager", "train", "30"),
            ("torch", "channels_last", "compile", "train", "15"),
        )
    ]
    _write(results / "unet-made-up.csv", UNET_COLUMNS, rows)
    text = report.write_results().read_text()
    assert "## a U-Net, NVIDIA Made-Up" in text
    assert "| train | 10 channels_last bf16 |  | 30 channels_last bf16 | 15 channels_last bf16 | 3.00 |  | 1.50 |" in text


def test_a_trial_run_is_not_taken_for_a_gpu(results: Path) -> None:
    _write(results / "ops-cpu.csv", OP_COLUMNS, [_op_row("film", "fastdiff", 20, kernels="avx512")])
    with pytest.raises(ValueError, match="trial run on a CPU"):
        report.write_results()


def test_random_data_is_timed_never_zeros() -> None:
    for case in cases(tiny=True):
        for a in case.make("cpu"):
            if isinstance(a, torch.Tensor) and a.is_floating_point() and a.numel() > 50:
                assert float(a.double().std()) > 0.1, case.name
                assert math.isfinite(float(a.double().sum()))
