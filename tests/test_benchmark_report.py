"""The report of made-up rows: a U-Net's forward, each side's best and what the one is of the other; samplers by steps."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import report
from unet_forward import COLUMNS


def test_a_forward_is_compared_with_torchs_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = dict.fromkeys(COLUMNS, "") | {"device": "a made-up processor", "case": "small", "gflop": "30"}
    times = [
        ("fastdiff", "NCHW", "eager", "25"),
        ("fastdiff", "channels_last", "eager", "20"),
        ("torch", "NCHW", "eager", "70"),
        ("torch", "channels_last", "eager", "60"),
        ("torch", "channels_last", "compile", "50"),
    ]
    folder = tmp_path / "results" / "unet_forward"
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
    row = "| small | bf16 | 20 channels_last | 1.50 | 60 channels_last | 50 channels_last | 2.50 | 1.0e-02 | 9.0e-03 |"
    assert row in text.splitlines()


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
