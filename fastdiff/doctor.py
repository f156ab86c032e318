"""`fastdiff doctor`: versions, what is compiled and in use, and a check of each op against its reference in float64."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from . import ops
from .ops import Op
from .ops._library import CPU_LEVELS
from .ops._oracle import errors_and_bounds

PACKAGES = ("fastdiff", "torch", "numpy", "safetensors", "pillow", "scikit-learn", "jsonargparse", "triton")


def examine() -> tuple[list[str], bool]:
    """Lines to print, and whether all is well: what the build promised is there, and every op gives its reference's values."""
    lines = [f"{name:14}{_version(name)}" for name in PACKAGES]
    healthy = True

    record = ops.build_record()
    lines += ["", f"build         FASTDIFF_BUILD={record.get('requested', 'not recorded')}: {_compiled(record)}"]
    if record.get("note"):
        lines.append(f"              {record['note']}")
    if ops.native.path is None and record.get("requested", "none") != "none":
        healthy = False
        lines.append("              no kernel library is loaded: every op runs as plain torch; install fastdiff again")
    if ops.native.path is not None:
        from . import _C

        info, features = _C.build_info(), _C.cpu_features()
        lines.append(
            f"              {info['compiler']}, nvcc {info['cuda'] or 'none'} {' '.join(info['cuda_architectures'])}".rstrip()
        )
        lines.append(f"CPU           {' '.join(name for name, there in features.items() if there)}")
        cap = f"FASTDIFF_CPU={'|'.join(CPU_LEVELS)} caps it"
        lines.append(f"in use        {ops.native.cpu_level} kernels of {' '.join(info['cpu'])} ({cap})")
        wants_amx = (os.environ.get("FASTDIFF_CPU") or "amx") == "amx" and "amx" in info["cpu"]
        if wants_amx and features.get("amx_bf16") and ops.native.cpu_level != "amx":
            lines.append("              AMX is there, but the system did not lend its registers to this process")
    if ops.native.disabled:
        lines.append(f"disabled      {', '.join(ops.native.disabled)} (FASTDIFF_DISABLE)")
    devices = ["cpu"]
    if torch.cuda.is_available():
        major, minor = torch.cuda.get_device_capability()
        lines.append(f"CUDA          {torch.cuda.get_device_name()}, compute capability {major}.{minor}")
        architectures = _architectures()
        if architectures and not runs_on((major, minor), architectures):
            healthy = False
            lines.append(
                f"              the kernels were built for {' '.join(architectures)} and do not run on this GPU: 8.0 and newer "
                "are supported; CUDAARCHS says what a build is for, see setup.py"
            )
        else:
            devices.append("cuda")

    lines += ["", f"{'op':28}{'device':8}{'kernel':14}largest error, of what is allowed"]
    for device in devices:
        for op in ops.REGISTRY.values():
            try:
                error, wrong = _check(op, device)
            except RuntimeError as reason:  # of a kernel that does not run: the other lines still say what does
                error, wrong = float("nan"), str(reason).splitlines()[0]
            healthy &= not wrong
            kernel = "native" if op.compiled(device.upper()) else "plain torch"
            lines.append(f"{op.name:28}{device:8}{kernel:14}{error:.0%}{'  WRONG: ' + wrong if wrong else ''}")
    lines += ["", "all well" if healthy else "something is wrong, see above"]
    return lines, healthy


def runs_on(capability: tuple[int, int], architectures: Iterable[str]) -> bool:
    """Whether a GPU has code among architectures as CMake names them: "80-real", "90a-real", "90-virtual", "90".

    Machine code serves later minor versions of its major version; with the letter a only its own version, with f only its
    major version. The driver compiles PTX ("virtual", or without a suffix) for every later GPU, but not that of a or f.
    CUDA C++ programming guide, sections 3.1.2 to 3.1.4.
    """
    if capability < (8, 0):
        return False
    for name in architectures:
        match = re.fullmatch(r"(\d+)(\d)([af]?)(-real|-virtual)?", name)
        if match is None:  # native, all, all-major: it cannot be told
            return True
        built, letter, kind = (int(match[1]), int(match[2])), match[3], match[4]
        if letter == "a" and capability == built:
            return True
        if letter != "a" and capability[0] == built[0] and capability >= built:
            return True
        if not letter and kind != "-real" and capability >= built:
            return True
    return False


def _architectures() -> list[str]:
    """What the loaded library's CUDA kernels were compiled for; [] where there are none."""
    if ops.native.path is None:
        return []
    from . import _C

    return list(_C.build_info()["cuda_architectures"])


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _compiled(record: dict[str, Any]) -> str:
    return f"kernels for {' and '.join(record['compiled'])}" if record.get("compiled") else "nothing compiled"


def _check(op: Op, device: str) -> tuple[float, str]:
    """The largest error over the op's samples, as a share of what `errors_and_bounds` allows, and where above."""
    checked = {s.name: errors_and_bounds(op, s.args) for s in op.small_samples(torch.float32, device)}
    worst = max(error / bound if bound else error for outputs in checked.values() for error, bound in outputs)
    return worst, ", ".join(name for name, outputs in checked.items() if any(not error <= bound for error, bound in outputs))
