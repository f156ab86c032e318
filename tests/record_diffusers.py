"""Records what diffusers' UNet2DModel makes of a few configs: `python tests/record_diffusers.py`, with diffusers installed.

Into models/diffusers.json: of each case the config, the tensors' names and shapes, and the output. Weights and images are known
by name and shape alone (`weight`), so none are stored.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import torch

RECORD = Path(__file__).parent / "models" / "diffusers.json"
T = torch.tensor([3, 700])
LABELS = torch.tensor([0, 2])
OLD_NAMES = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}  # of diffusers before 0.12

SMALL = {
    "sample_size": 8,
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": [8, 16],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
    "layers_per_block": 1,
    "norm_num_groups": 4,
}
CASES: dict[str, dict[str, Any]] = {
    "defaults": {},
    "as the first checkpoints": {
        "downsample_padding": 0,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "attention_head_dim": None,
        "norm_eps": 1e-6,
    },
    "scale_shift": {"resnet_time_scale_shift": "scale_shift", "attention_head_dim": 4},
    "scale_shift, a norm in the middle": {"resnet_time_scale_shift": "scale_shift", "attn_norm_num_groups": 2, "freq_shift": 1},
    "classes, no attention in the middle": {"num_class_embeds": 3, "add_attention": False, "time_embedding_dim": 24},
    "attention at all levels": {
        "in_channels": 3,
        "out_channels": 2,
        "block_out_channels": [8, 12],
        "down_block_types": ["AttnDownBlock2D"] * 2,
        "up_block_types": ["UNetResAttnUpBlock2D"] * 2,
        "attention_head_dim": 2,
        "layers_per_block": 2,
        "norm_eps": 1e-2,
        "downsample_padding": 0,
        "act_fn": "swish",
    },
    "one level": {"block_out_channels": [8], "down_block_types": ["DownBlock2D"], "up_block_types": ["UpBlock2D"]},
}


def weight(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Uniform, with the spread that keeps a layer's output as large as its input; a norm's are around 1."""
    values = 2 * np.random.default_rng(crc32(name.encode())).random(shape) - 1
    if len(shape) == 1:
        values = (1 if "norm" in name and name.endswith("weight") else 0) + 0.3 * values
    else:
        values *= math.sqrt(3 / math.prod(shape[1:]))
    return torch.from_numpy(values).float()


def images(channels: int) -> torch.Tensor:
    return 5 * weight("images", (2, channels, 8, 8))


def renamed(name: str, names: dict[str, str]) -> str:
    for this, other in names.items():
        name = name.replace(f".{this}.", f".{other}.")
    return name


def recorded(config: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    import diffusers

    unet = diffusers.UNet2DModel(**config).eval()
    shapes = {name: tuple(tensor.shape) for name, tensor in unet.state_dict().items()}
    unet.load_state_dict({name: weight(name, shape) for name, shape in shapes.items()})
    labels = LABELS if "num_class_embeds" in config else None
    with torch.no_grad():
        output = unet(images(config["in_channels"]), T, labels, return_dict=False)[0]
    return {
        "config": {"_class_name": "UNet2DModel", "_diffusers_version": diffusers.__version__, **config},
        "shapes": {renamed(name, names): shape for name, shape in shapes.items()},
        "output": [round(v, 7) for v in output.flatten().tolist()],
    }


def main() -> None:
    torch.set_num_threads(1)
    lines = [
        f"{json.dumps(name)}: {json.dumps(recorded(SMALL | extra, OLD_NAMES if name == 'as the first checkpoints' else {}))}"
        for name, extra in CASES.items()
    ]
    RECORD.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
