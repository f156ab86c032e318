"""Folders of diffusers' UNet2DModel, read and written without diffusers: config.json and diffusion_pytorch_model.safetensors.

The two networks compute the same and differ in names, with three exceptions. Query, key and value are one matrix here. The
sinusoid is [sin, cos] here, so that for `flip_sin_to_cos` the columns of the layer behind it change places. And a table of
classes here has the null class at its end, which there is a class like any other: `_null_class` in config.json says so, a key
that diffusers passes over.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from .diffusers_config import DEFAULTS, config_of, constructor_arguments

if TYPE_CHECKING:
    from .unet import UNet

CONFIG, WEIGHTS, PICKLED = "config.json", "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"

# From our names of parameters to theirs, one after the other.
NAMES = (
    (r"^time_embedding\.linear", "time_embedding.linear_"),
    (r"^label_embedding\.table", "class_embedding"),
    (r"^(down|up)\.(\d+)\.", r"\1_blocks.\2."),
    (r"^down_blocks\.(\d+)\.resample", r"down_blocks.\1.downsamplers.0.conv"),
    (r"^up_blocks\.(\d+)\.resample", r"up_blocks.\1.upsamplers.0.conv"),
    (r"^middle\.(\d+)\.", r"mid_block.stages.\1."),
    (r"stages\.(\d+)\.residual", r"resnets.\1"),
    (r"stages\.(\d+)\.attention", r"attentions.\1"),
    (r"time_proj", "time_emb_proj"),
    (r"shortcut", "conv_shortcut"),
    (r"(attentions\.\d+)\.norm", r"\1.group_norm"),
    (r"(attentions\.\d+)\.proj", r"\1.to_out.0"),
    (r"^norm_out", "conv_norm_out"),
)

# Attention's layers in files of diffusers below 0.12.
OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def load(network: type[UNet], folder: str | Path, null_class: bool | None) -> UNet:
    """See `UNet.from_diffusers`."""
    folder = Path(folder)
    if not (folder / CONFIG).is_file() and (folder / "unet" / CONFIG).is_file():
        folder = folder / "unet"
    if not (folder / CONFIG).is_file():
        raise FileNotFoundError(f"{folder} holds neither {CONFIG} nor unet/{CONFIG}: it is no folder of diffusers' UNet2DModel")
    try:
        try:
            config = json.loads((folder / CONFIG).read_text())
        except ValueError as error:
            raise ValueError(f"{CONFIG} is no JSON ({error})") from None
        unet = network(**constructor_arguments(config, null_class))
        state = _state(unet, _tensors(folder))
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None
    if config.get("flip_sin_to_cos", DEFAULTS["flip_sin_to_cos"]):
        columns = state["time_embedding.linear1.weight"]
        state["time_embedding.linear1.weight"] = torch.cat(columns.chunk(2, dim=1)[::-1], dim=1)
    unet.load_state_dict(state)
    return unet.eval()


def save(unet: UNet, folder: str | Path, sample_size: int | None) -> Path:
    """See `UNet.save_diffusers`."""
    config = config_of(unet) | {"sample_size": sample_size}
    tensors = {}
    for name, tensor in unet.state_dict().items():
        theirs = their_names(name)
        tensors |= zip(theirs, tensor.detach().cpu().chunk(len(theirs)), strict=True)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, folder / WEIGHTS, {"format": "pt"})
    (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    return folder


def their_names(name: str) -> list[str]:
    """Of a parameter of ours, the tensors of theirs that follow each other in it."""
    for ours, theirs in NAMES:
        name = re.sub(ours, theirs, name)
    return [name.replace("qkv", f"to_{part}") for part in "qkv"] if ".qkv." in name else [name]


def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    """The file's, in today's names."""
    if (folder / WEIGHTS).is_file():
        try:
            tensors = load_file(folder / WEIGHTS)
        except SafetensorError as error:
            raise ValueError(f"{WEIGHTS} is damaged ({error})") from None
    elif (folder / PICKLED).is_file():
        tensors = torch.load(folder / PICKLED, map_location="cpu", weights_only=True)  # runs no code of the file
    else:
        found = ", ".join(sorted(p.name for p in folder.glob("*.safetensors*"))) or "no weights"
        raise FileNotFoundError(f"{folder} holds neither {WEIGHTS} nor {PICKLED}, only {found}")
    old = re.compile(rf"(attentions\.\d+)\.({'|'.join(OLD_NAMES)})\.")
    return {old.sub(lambda m: f"{m[1]}.{OLD_NAMES[m[2]]}.", name): tensor for name, tensor in tensors.items()}


def _state(unet: UNet, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A state dict of the network out of theirs, each of which has one place in it."""
    state, missing, misshapen = {}, [], []
    for name, parameter in unet.state_dict().items():
        theirs = their_names(name)
        shape = (parameter.shape[0] // len(theirs), *parameter.shape[1:])
        parts = [tensors.pop(key, None) for key in theirs]
        for key, part in zip(theirs, parts, strict=True):
            if part is None:
                missing.append(key)
            elif part.shape != shape:
                misshapen.append(f"{key} {tuple(part.shape)} instead of {shape}")
        if not missing and not misshapen:
            state[name] = torch.cat(parts).float()
    problems = {"missing": missing, "of another shape": misshapen, "left over": sorted(tensors)}
    if told := [f"{len(keys)} tensors {what}: {_first(keys)}" for what, keys in problems.items() if keys]:
        raise ValueError(f"the weights do not fit {CONFIG}: {'; '.join(told)}")
    return state


def _first(keys: list[str]) -> str:
    return ", ".join(keys[:5]) + (", ..." if len(keys) > 5 else "")
