"""The run folder: its name, and the files that say what was run where."""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from itertools import count
from pathlib import Path
from typing import Any

import torch
import yaml

from .. import ops
from ..config import Config, to_dict
from ..visualization.files import write_atomically
from .checkpoint import find_checkpoint

RUNS = Path("runs")
MARKS = ("config.yaml", "checkpoints", "metrics.jsonl")  # a folder with one of them holds a run


def create_run_folder(config: Config) -> Path:
    """The next free run folder, with config.yaml and environment.json. Raises OSError where it cannot be written."""
    folder = wanted = _wanted(config)
    for number in count(2):
        if not any((folder / mark).exists() for mark in MARKS):
            try:
                (folder / "checkpoints").mkdir(parents=True)
                break
            except FileExistsError:  # another run that starts now was faster
                pass
            except OSError as error:
                raise OSError(error.errno, f"cannot create the run folder ({error.strerror})", str(folder)) from error
        folder = wanted.with_name(f"{wanted.name}-{number}")
    write_config(folder, config)
    write_atomically(folder / "environment.json", json.dumps(environment(), indent=1).encode())
    return folder


def write_config(folder: Path, config: Config) -> None:
    """config.yaml with every value, so that it means the same when defaults change."""
    write_atomically(folder / "config.yaml", yaml.safe_dump(to_dict(config), sort_keys=False).encode())


def _wanted(config: Config) -> Path:
    return Path(config.logging.run_dir) if config.logging.run_dir else RUNS / config.data.name


def latest_run(config: Config | None = None) -> Path:
    """The run that wrote a checkpoint last: of those that the config would name, NAME and NAME-2 and so on, or of all
    under runs/. Raises FileNotFoundError where there is none.
    """
    parent, name = (RUNS, "*") if config is None else (_wanted(config).parent, _wanted(config).name)
    last = [p for p in parent.glob("*/checkpoints/last.safetensors") if _is_named(p.parent.parent.name, name)]
    if not last:
        raise FileNotFoundError(f"there is no run {parent / name} with a checkpoint to resume")
    return max(last, key=lambda p: p.stat().st_mtime).parent.parent


def _is_named(folder: str, name: str) -> bool:
    return name == "*" or folder == name or (folder.startswith(f"{name}-") and folder[len(name) + 1 :].isdigit())


def run_folder_of(path: Path) -> Path:
    """The run folder that a path means: itself, or the one that the checkpoint belongs to."""
    return path if path.is_dir() else find_checkpoint(path).parent.parent


def environment() -> dict[str, Any]:
    """Versions, machine, command line and git commit."""
    packages = ("fastdiff", "torch", "numpy", "safetensors", "pillow", "scikit-learn")
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(sys.argv),
        "python": platform.python_version(),
        **{name: _version(name) for name in packages},
        "platform": platform.platform(),
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "kernels": ops.native.cpu_level or "none: every op runs as plain torch",
        "git": _git_commit(),
        "cpus": os.cpu_count(),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def _git_commit() -> str | None:
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
