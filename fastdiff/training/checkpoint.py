"""Checkpoints: one safetensors file that says all about itself, and a JSON file beside it to read.

The file's header holds what a model is rebuilt from, so sampling needs only the path, and a checksum of the tensors. It is
written beside its place and then renamed, so there is always a whole one: the old or the new.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from ..diffusion import DiffusionModel
from ..visualization.files import write_atomically
from .flat import parts

FORMAT = "fastdiff-checkpoint"
VERSION = 1
SUFFIX = ".safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint's contents. tensors: `model.*`, `ema.*`, `optimizer.*`, `rng.*`; meta: what JSON holds."""

    path: Path
    meta: dict[str, Any]
    tensors: dict[str, torch.Tensor]

    def part(self, name: str) -> dict[str, torch.Tensor]:
        """The tensors of one part, without its prefix."""
        prefix = f"{name}."
        return {key.removeprefix(prefix): t for key, t in self.tensors.items() if key.startswith(prefix)}


def save_checkpoint(
    path: str | Path,
    *,
    model: DiffusionModel,
    ema: nn.Module | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    state: Mapping[str, Any] | None = None,
) -> Path:
    """Write PATH.safetensors and PATH.json; a file of that name is replaced in one move.

    model: with a `config`, see `DiffusionModel.config`. ema: the model whose weights are to be sampled from.
    optimizer: to resume. state: anything that JSON can hold.
    Raises OSError naming the path where it cannot be written.
    """
    target = _with_suffix(path)
    tensors = {f"model.{key}": t for key, t in model.state_dict().items()}
    meta: dict[str, Any] = {"format": FORMAT, "version": VERSION, "model": model.config, "state": dict(state or {})}
    if ema is not None:
        tensors |= {f"ema.{key}": t for key, t in ema.state_dict().items()}
    if optimizer is not None:
        meta["optimizer"] = type(optimizer).__name__
        tensors |= _optimizer_tensors(optimizer)
        tensors["rng.cpu"] = torch.get_rng_state()  # of dropout; all other draws are keyed by seed and step
        if torch.cuda.is_available():
            tensors["rng.cuda"] = torch.cuda.get_rng_state()
    tensors = {key: t.detach().cpu().contiguous() for key, t in tensors.items()}
    meta["crc32"] = _checksum(meta, tensors)
    text = json.dumps(meta, indent=1)
    write_atomically(target, save(tensors, {FORMAT: text}))
    write_atomically(target.with_suffix(".json"), text.encode())
    return target


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read and check a checkpoint, or the last one of a run folder.

    Raises FileNotFoundError where there is none, ValueError for a foreign or a damaged file; it names the newest good
    checkpoint in the same folder.
    """
    file = find_checkpoint(path)
    try:
        return _read(file)
    except ValueError as error:
        good = _newest_good(file)
        raise ValueError(f"{error}" + (f"; the newest good checkpoint there is {good}" if good else "")) from None


def find_checkpoint(path: str | Path) -> Path:
    """The file that a path means: itself, itself without the suffix, or `checkpoints/last` of a run folder."""
    path = Path(path)
    if path.is_dir():
        last = path / "checkpoints" / f"last{SUFFIX}"
        if not last.is_file():
            raise FileNotFoundError(f"{path} holds no checkpoints/last{SUFFIX}: it is not a run folder, or has not trained yet")
        return last
    if path.is_file() and path.suffix != ".json":
        return path
    if _with_suffix(path).is_file():
        return _with_suffix(path)
    raise FileNotFoundError(f"there is no checkpoint or run folder {path}")


def load_model(path: str | Path, device: torch.device | str = "cpu") -> DiffusionModel:
    """The model of a checkpoint or run folder, in eval mode, with the averaged weights where there are any."""
    checkpoint = read_checkpoint(path)
    model = DiffusionModel.from_config(checkpoint.meta["model"])
    load_weights(model, checkpoint.part("ema") or checkpoint.part("model"), checkpoint.path)
    return model.to(device).eval()


load = load_model  # fastdiff.load


def load_weights(model: nn.Module, weights: dict[str, torch.Tensor], path: Path) -> None:
    """Load a state dict strictly; ValueError names the file and what does not fit."""
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit the model: {' '.join(str(error).split())}") from None


def restore_optimizer(optimizer: torch.optim.Optimizer, checkpoint: Checkpoint) -> None:
    """Bring back the optimizer's state and torch's random state, as `save_checkpoint` took them.

    Raises ValueError for a checkpoint without an optimizer, or with that of another kind.
    """
    kind = checkpoint.meta.get("optimizer")
    if kind is None:
        raise ValueError(f"{checkpoint.path} holds no optimizer to go on with: resume from checkpoints/last or step-N")
    if kind != type(optimizer).__name__:
        raise ValueError(f"{checkpoint.path} was trained with {kind}, this run has {type(optimizer).__name__}")
    saved: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in checkpoint.part("optimizer").items():
        index, key = name.split(".", 1)
        saved.setdefault(int(index), {})[key] = tensor
    state: dict[int, dict[str, torch.Tensor]] = {}
    first = 0
    for index, parameter in enumerate(_parameters(optimizer)):
        for key, tensor in saved.get(first, {}).items():
            value = tensor  # a step count, the same for all
            if tensor.dim():  # fused optimizers walk over memory: strides must be the parameter's
                value = torch.zeros_like(parameter, dtype=tensor.dtype)
                for i, part in enumerate(parts(parameter, value), first):
                    part.copy_(saved[i][key])
            state.setdefault(index, {})[key] = value
        first += len(parts(parameter, parameter))
    groups = optimizer.state_dict()["param_groups"]  # the config's: a resumed run may have another weight decay
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    torch.set_rng_state(checkpoint.tensors["rng.cpu"])
    if "rng.cuda" in checkpoint.tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(checkpoint.tensors["rng.cuda"])


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """By parameter of the model, in the optimizer's order: the file does not tell how they were stored for it."""
    tensors: dict[str, torch.Tensor] = {}
    first = 0
    for parameter in _parameters(optimizer):
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, torch.Tensor):  # SGD without momentum keeps a None
                tensors |= {f"optimizer.{i}.{key}": part for i, part in enumerate(parts(parameter, value), first)}
        first += len(parts(parameter, parameter))
    return tensors


def _parameters(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _checksum(meta: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> int:
    """Of all that the file says: the JSON without the checksum itself, and the tensors with their names, types and shapes."""
    rest = {key: value for key, value in meta.items() if key != "crc32"}
    crc = zlib.crc32(json.dumps(rest, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        crc = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), crc)
        crc = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy(), crc)
    return crc


def _read(file: Path) -> Checkpoint:
    try:
        with safe_open(file, framework="pt") as opened:
            text = (opened.metadata() or {}).get(FORMAT)
            if text is None:
                raise ValueError(f"{file} is a safetensors file, but not a checkpoint of fastdiff")
            tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118  safe_open is no mapping
    except SafetensorError as error:
        raise ValueError(f"{file} is damaged or not a checkpoint of fastdiff ({error})") from None
    try:
        meta = json.loads(text)
        version, crc = meta["version"], meta["crc32"]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{file} is damaged: its header cannot be read") from None
    if isinstance(version, int) and version > VERSION:
        raise ValueError(f"{file} has format version {version}, this fastdiff reads up to {VERSION}: upgrade fastdiff")
    if crc != _checksum(meta, tensors):
        raise ValueError(f"{file} is damaged: its checksum is not that of its contents")
    return Checkpoint(file, meta, tensors)


def _newest_good(file: Path) -> Path | None:
    others = sorted(file.parent.glob(f"*{SUFFIX}"), key=lambda p: p.stat().st_mtime, reverse=True)
    for other in others:
        if other != file:
            try:
                return _read(other).path
            except ValueError:
                continue
    return None


def _with_suffix(path: str | Path) -> Path:
    path = Path(path)
    known = re.fullmatch(r"\.(safetensors|json)", path.suffix)
    return path.with_suffix(SUFFIX) if known else path.with_name(path.name + SUFFIX)
