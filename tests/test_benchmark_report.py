"""The report of a U-Net's forward out of made-up rows: each side's best, and what the one is of the other."""

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
