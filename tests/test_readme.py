"""What the README claims of the code is so."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fastdiff import ops

README = Path(__file__).parent.parent / "README.md"


@pytest.fixture
def text() -> str:
    return README.read_text()


def test_the_table_says_what_is_native_where(text: str) -> None:
    rows = re.findall(r"^\| `(\w+)` \| .* \| (native|plain torch) \| (native|plain torch) \|$", text, re.MULTILINE)
    stated = {name: {"CPU": cpu == "native", "CUDA": cuda == "native"} for name, cpu, cuda in rows}
    forward = {name: op for name, op in ops.REGISTRY.items() if not name.endswith("_backward")}
    assert stated == {name: {key: key in op.native for key in ("CPU", "CUDA")} for name, op in forward.items()}


def test_its_places_exist(text: str) -> None:
    for place in re.findall(r"`((?:fastdiff|csrc|tests|benchmarks)/[\w./]+)`", text) + re.findall(r"\]\(([\w./]+)\)", text):
        if "NAME" not in place:
            assert (README.parent / place).exists(), place


def test_its_python_runs(text: str) -> None:
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]
    lines = [line for line in code.splitlines() if "runs/digits" not in line]  # that one needs a trained model: test_sampling
    assert len(lines) < len(code.splitlines())
    exec("\n".join(lines), {})
