"""The reports of made-up rows: forwards and peers, the best of each side; samplers by steps."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import report
import unet_training
from peer_report import section
from peers import BREAKDOWN
from peers import COLUMNS as PEER_COLUMNS
from unet_forward import COLUMNS


@pytest.mark.parametrize("what", ["unet_forward", "classifiers"])
def test_a_forward_is_compared_with_torchs_best(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = dict.fromkeys(COLUMNS, "") | {"device": "a made-up processor", "case": "small", "gflop": "30"}
    times = [
        ("fastdiff", "NCHW", "eager", "25"),
        ("fastdiff", "channels_last", "eager", "20"),
        ("torch", "NCHW", "eager", "70"),
        ("torch", "channels_last", "eager", "60"),
        ("torch", "channels_last", "compile", "50"),
    ]
    if what == "classifiers":
        times.append(("OpenVINO", "NCHW", "compile", "30"))
    folder = tmp_path / "results" / what
    folder.mkdir(parents=True)
    with (folder / "made-up.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for side, layout, mode, ms in times:
            error = "1.0e-02" if side == "fastdiff" else "9.0e-03"
            writer.writerow(
                made | {"side": side, "format": layout, "precision": "bf16", "mode": mode, "median_ms": ms, "error": error}
            )
    monkeypatch.setattr(report, "HERE", tmp_path)
    text = report.write_results().read_text()
    assert "a made-up processor" in text
    ours, torchs, errors = "20 channels_last | 1.50", "60 channels_last | 50 channels_last", "1.0e-02 | 9.0e-03"
    others = "30 | 2.50 | 1.50" if what == "classifiers" else "2.50"
    assert f"| small | bf16 | {ours} | {torchs} | {others} | {errors} |" in text.splitlines()


def test_samplers_stand_with_the_spread_of_their_seeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = {"device": "a made-up processor", "n": "1797", "floor": "0.27", "torch": "", "date": "", "commit": ""}
    measured = [
        *(("ddim", "trailing", steps, "0", frechet) for steps, frechet in (("100", "0.5"), ("5", "2.0"))),
        *(("ddpm", "karras", "5", str(seed), frechet) for seed, frechet in enumerate(("0.1", "0.3", "0.23"))),
    ]
    folder = tmp_path / "results" / "samplers"
    folder.mkdir(parents=True)
    names = ("sampler", "spacing", "steps", "seed", "frechet")
    with (folder / "made-up.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, [*made, *names])
        writer.writeheader()
        writer.writerows(made | dict(zip(names, row, strict=True)) for row in measured)
    monkeypatch.setattr(report, "HERE", tmp_path)
    lines = report.write_results().read_text().splitlines()
    assert "| sampler | timesteps | 5 | 100 |" in lines
    assert "| ddim | trailing | 2.000 | 0.500 |" in lines
    assert "| ddpm | karras | 0.210 (0.100 to 0.300) |  |" in lines


def peer(case: str, name: str, ms: str, **figures: str) -> dict[str, str]:
    made = dict.fromkeys(PEER_COLUMNS, "") | {"device": "a made-up processor", "threads": "2", "amx": "no", "gflop": "40"}
    return (
        made | {"case": case, "peer": name, "median_ms": ms, "peak_bf16": "4", "peak_fp32": "2", "error": "1.2e-02"} | figures
    )


def test_peers_are_held_against_the_goals() -> None:
    case, sampled, trained = (
        "MNIST size, batch 16",
        "50 DDIM steps of 16 MNIST-size images",
        "training step, MNIST size, batch 16",
    )
    rows = [
        peer(case, "OpenVINO bf16", "50"),
        peer(case, "diffusers eager fp32 NCHW", "100"),
        peer(case, "fastdiff bf16", "20"),
        peer(case, "fastdiff highest", "40", error="9.0e-07"),
        peer(sampled, "diffusers compile bf16 channels_last", "700"),
        peer(sampled, "fastdiff bf16", "200"),
        peer(trained, "fastdiff bf16", "100", memory_mb="900", added_mb="400"),
    ]
    parts = [
        dict.fromkeys(BREAKDOWN, "") | {"case": "a case", "op": op, "calls": "2", "ms": ms, "share": share, "gflop_per_s": "7"}
        for op, ms, share in (("convolution", "9.9", "0.983"), ("this", "0.05", "0.009"), ("that", "0.04", "0.008"))
    ]
    text = section(rows, parts)
    for row in (
        f"| {case}: times as fast as the best rival | 4 to 8 | 2.50 (OpenVINO bf16) |",
        f"| {case}: error of fastdiff bf16, at most | 0.015 | 1.2e-02 |",
        f"| {case}: error of fastdiff highest, at most | 1e-5 | 9.0e-07 |",
        f"| {case}: error of fastdiff high, at most | 1e-4 | not measured |",
        "| CIFAR size, batch 4: times as fast as the best rival | 4 to 8 | not measured |",
        f"| {sampled}: times as fast as diffusers at its best | 3 | 3.50 (diffusers compile bf16 channels_last) |",
        f"| {trained}: times as fast as torch at its best |  | not measured |",
        "| fastdiff bf16 | 20 |  to  | 2.00 | 50% | 1.2e-02 | 1.00 |",
        "| diffusers eager fp32 NCHW | 100 |  to  | 0.40 | 20% | 1.2e-02 | 5.00 |",
        "| fastdiff bf16 | 100 |  to  | 0.40 | 10% | 1.2e-02 | 1.00 | 900 | 400 |",
        "| convolution | 2 | 9.90 | 98% | 7 |",
        "| 2 kinds below 1% each | | 0.09 | 2% | |",
    ):
        assert row in text, row


def test_training_is_compared_with_torchs_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = dict.fromkeys(unet_training.COLUMNS, "") | {"device": "a made-up processor", "case": "small", "precision": "bf16"}
    measured = [
        ("fastdiff", "NCHW", "120", "1.5e-02", "60", "500"),
        ("fastdiff", "channels_last", "100", "1.6e-02", "59", "510"),
        ("torch", "NCHW", "180", "1.2e-02", "160", "650"),
        ("torch", "channels_last", "250", "1.1e-02", "150", "660"),
    ]
    folder = tmp_path / "results" / "unet_training"
    folder.mkdir(parents=True)
    with (folder / "made-up.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, unet_training.COLUMNS)
        writer.writeheader()
        for row in measured:
            writer.writerow(
                made | dict(zip(("side", "format", "median_ms", "error", "step_mb", "process_mb"), row, strict=True))
            )
    monkeypatch.setattr(report, "HERE", tmp_path)
    text = report.write_results().read_text()
    row = "| small | bf16 | 100 channels_last | 180 NCHW | 1.80 | 1.6e-02 | 1.2e-02 | 59 | 150 | 0.39 | 500 | 650 |"
    assert row in text.splitlines()
