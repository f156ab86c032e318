"""`fastdiff doctor`: versions, what is compiled and in use, and a check of each op against its reference in float64."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from . import ops
from .ops import Op
from .ops._library import CPU_LEVELS
from .ops._oracle import as_tuple, error_and_bound, in_float64

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
    if ops.native.disabled:
        lines.append(f"disabled      {', '.join(ops.native.disabled)} (FASTDIFF_DISABLE)")
    devices = ["cpu"]
    if torch.cuda.is_available():
        devices.append("cuda")
        lines.append(f"CUDA          {torch.cuda.get_device_name()}, capability {torch.cuda.get_device_capability()}")

    lines += ["", f"{'op':28}{'device':8}{'kernel':14}error (of the largest value)"]
    for device in devices:
        for op in ops.REGISTRY.values():
            error, wrong = _check(op, device)
            healthy &= not wrong
            kernel = "native" if op.compiled(device.upper()) else "plain torch"
            lines.append(f"{op.name:28}{device:8}{kernel:14}{error:.1e}{'  WRONG: ' + wrong if wrong else ''}")
    lines += ["", "all well" if healthy else "something is wrong, see above"]
    return lines, healthy


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _compiled(record: dict[str, Any]) -> str:
    return f"kernels for {' and '.join(record['compiled'])}" if record.get("compiled") else "nothing compiled"


def _check(op: Op, device: str) -> tuple[float, str]:
    """The largest error over the op's samples, and the samples where it is larger than `_oracle.error_and_bound` allows."""
    worst, wrong = 0.0, []
    for sample in op.samples(torch.float32, device):
        if sample.large:
            continue
        outputs = (as_tuple(call) for call in (op(*sample.args), op.reference(*sample.args)))
        truths = as_tuple(op.reference(*in_float64(sample.args)))
        for got, plain, truth in zip(*outputs, truths, strict=True):
            error, bound = error_and_bound(got, plain, truth, op.floor)
            worst = max(worst, error / max(1.0, float(truth.abs().max()) if truth.numel() else 0.0))
            if not error <= bound and sample.name not in wrong:
                wrong.append(sample.name)
    return worst, ", ".join(wrong)
