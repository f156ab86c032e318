"""What is being tested: the installed package with what its build promised, said in pytest's header."""

from __future__ import annotations

import json
from importlib.metadata import distribution
from pathlib import Path

import pytest

import fastdiff
from fastdiff import ops


def _installed_package() -> Path:
    """Where the installed distribution says that the package is."""
    dist = distribution("fastdiff")
    direct = json.loads(dist.read_text("direct_url.json") or "{}")
    if direct.get("dir_info", {}).get("editable"):
        return Path(direct["url"].removeprefix("file://")) / "fastdiff"
    return Path(str(dist.locate_file("fastdiff")))


def pytest_report_header() -> str:
    record = ops.build_record()
    compiled = ", ".join(record.get("compiled", [])) or "nothing"
    native = [n for n, op in ops.REGISTRY.items() if op.compiled("CPU")]
    return (
        f"fastdiff {fastdiff.__version__} at {Path(fastdiff.__file__).parent}: compiled {compiled} "
        f"(FASTDIFF_BUILD={record.get('requested', 'unknown')}), CPU level {ops.native.cpu_level}, "
        f"native on CPU: {', '.join(native) or 'no op'}"
    )


def pytest_sessionstart(session: pytest.Session) -> None:
    package, record = Path(fastdiff.__file__).resolve().parent, ops.build_record()
    if package != _installed_package().resolve():
        pytest.exit(f"the tests would run on {package}, not on the installed {_installed_package()}", returncode=3)
    if not record:
        pytest.exit("fastdiff was not built (no _build.json): pip install -e '.[test]'", returncode=3)
    if record["requested"] != "none" and ops.native.path is None:
        pytest.exit(f"the build was to compile kernels, but there are none: {record['note']}", returncode=3)
