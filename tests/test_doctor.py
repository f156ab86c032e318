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
