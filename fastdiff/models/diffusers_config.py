"""config.json of diffusers' UNet2DModel, and the arguments of `UNet` that make the same network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..nn import GroupNorm, GroupNormSiLU

if TYPE_CHECKING:
    from .unet import UNet

# What UNet2DModel takes for keys that a config.json leaves out.
DEFAULTS: dict[str, Any] = {
    "sample_size": None,
    "in_channels": 3,
    "out_channels": 3,
    "center_input_sample": False,
    "time_embedding_type": "positional",
    "time_embedding_dim": None,
    "freq_shift": 0,
    "flip_sin_to_cos": True,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"],
    "mid_block_type": "UNetMidBlock2D",
    "up_block_types": ["AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    "block_out_channels": [224, 448, 672, 896],
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "downsample_padding": 1,
    "downsample_type": "conv",
    "upsample_type": "conv",
    "dropout": 0.0,
    "act_fn": "silu",
    "attention_head_dim": 8,
    "norm_num_groups": 32,
    "attn_norm_num_groups": None,
    "norm_eps": 1e-5,
    "resnet_time_scale_shift": "default",
    "add_attention": True,
    "class_embed_type": None,
    "num_class_embeds": None,
    "num_train_timesteps": None,
}

# Keys of which there is one meaning here; more than one spelling of it, in some.
ONLY: dict[str, tuple[Any, ...]] = {
    "center_input_sample": (False,),
    "time_embedding_type": ("positional",),
    "mid_block_type": ("UNetMidBlock2D",),
    "mid_block_scale_factor": (1,),
    "downsample_padding": (0, 1),
    "downsample_type": ("conv", None),
    "upsample_type": ("conv", None),
    "act_fn": ("silu", "swish"),
    "resnet_time_scale_shift": ("default", "scale_shift"),
    "add_attention": (True, False),
    "flip_sin_to_cos": (True, False),
    "class_embed_type": (None,),
}

CONDITIONING = {"default": "add", "scale_shift": "scale_shift"}


def constructor_arguments(config: Mapping[str, Any], null_class: bool | None) -> dict[str, Any]:
    """`UNet`'s for a config.json. Raises ValueError naming the key, what was got and what there is."""
    if not isinstance(config, Mapping):
        raise ValueError(f"config.json must hold an object, got {type(config).__name__}")
    name = config.get("_class_name", "UNet2DModel")
    if name != "UNet2DModel":
        raise ValueError(f"_class_name must be UNet2DModel, got {name!r}")
    if unknown := [key for key in config if not key.startswith("_") and key not in DEFAULTS]:
        raise ValueError(f"config.json has keys that UNet2DModel does not: {', '.join(unknown)}")
    c = DEFAULTS | config
    for key, allowed in ONLY.items():
        if c[key] not in allowed:
            raise ValueError(f"{key} must be {' or '.join(map(repr, allowed))}, got {c[key]!r}")
    channels, groups, classes = c["block_out_channels"], c["norm_num_groups"], c["num_class_embeds"]
    attends = _attention_of(c["down_block_types"], "Down", "down_block_types", len(channels))
    if attends != _attention_of(c["up_block_types"], "Up", "up_block_types", len(channels))[::-1]:
        raise ValueError(
            "up_block_types must have attention at the levels of down_block_types, "
            f"got {c['up_block_types']} for {c['down_block_types']}"
        )
    for key in ("layers_per_block", "norm_num_groups"):
        if not isinstance(c[key], int):
            raise ValueError(f"{key} must be an integer, got {c[key]!r}")
    if c["attention_head_dim"] is not None:
        places = [n for n, attending in zip(channels, attends, strict=True) if attending]
        places += [channels[-1]] * c["add_attention"]
        if odd := [n for n in places if n % c["attention_head_dim"]]:
            raise ValueError(f"attention_head_dim must divide {odd[0]} channels, or be null, got {c['attention_head_dim']}")
    middle_groups = c["attn_norm_num_groups"]
    if middle_groups is None:
        middle_groups = groups if c["resnet_time_scale_shift"] == "default" else 0
    null_class = config.get("_null_class", False) if null_class is None else null_class
    labels = {} if classes is None else {"num_classes": classes - null_class, "null_class": null_class}
    return labels | {
        "in_channels": c["in_channels"],
        "out_channels": c["out_channels"],
        "model_channels": channels[0],
        "channel_multipliers": [n // channels[0] if n % channels[0] == 0 else n / channels[0] for n in channels],
        "time_embed_dim": c["time_embedding_dim"] or 4 * channels[0],
        "sinusoid_dim": channels[0],
        "freq_shift": c["freq_shift"],
        "num_res_blocks": c["layers_per_block"],
        "attention_resolutions": [2**level for level, attending in enumerate(attends) if attending],
        "head_dim": "all" if c["attention_head_dim"] is None else c["attention_head_dim"],
        "groups": groups,
        "middle_attention": c["add_attention"],
        "middle_groups": middle_groups,
        "eps": c["norm_eps"],
        "conditioning": CONDITIONING[c["resnet_time_scale_shift"]],
        "dropout": c["dropout"],
        "downsample_padding": c["downsample_padding"],
    }


def _attention_of(types: list[str], way: str, key: str, levels: int) -> list[bool]:
    """Of each level, whether its blocks have attention."""
    plain, attending = f"{way}Block2D", f"Attn{way}Block2D"
    names = [name.removeprefix("UNetRes") for name in types]
    if wrong := set(names) - {plain, attending}:
        raise ValueError(f"{key} must be of {plain} and {attending}, got {', '.join(sorted(wrong))}")
    if len(names) != levels:
        raise ValueError(f"{key} must name a block for each of the {levels} block_out_channels, got {len(names)}")
    return [name == attending for name in names]


def config_of(unet: UNet) -> dict[str, Any]:
    """The config.json of a network. Raises ValueError with every reason why there is none."""
    c = unet.config
    widths = [level.stages[0].residual.conv2.out_channels for level in unet.down]
    attends = [level.stages[0].attention is not None for level in unet.down]
    centre = unet.middle[0].attention
    attention = [stage.attention for level in unet.down for stage in level.stages if stage.attention is not None]
    head_dims = {(a.head_dim, a.proj.in_features) for a in [*attention, *([] if centre is None else [centre])]}
    one_head = all(d == channels for d, channels in head_dims)
    centre_norm = getattr(centre, "norm", None)
    norms = [m for m in unet.modules() if isinstance(m, GroupNorm | GroupNormSiLU) and m is not centre_norm]
    groups = {norm.num_groups for norm in norms}
    shift = {there: here for here, there in CONDITIONING.items()}.get(c["conditioning"])
    centre_groups = getattr(centre_norm, "num_groups", None)

    reasons = []
    if c["norm"] != "group":
        reasons.append(f"norm must be 'group', got {c['norm']!r}")
    if shift is None:
        reasons.append(f"conditioning must be one of {', '.join(CONDITIONING.values())}, got {c['conditioning']!r}")
    if len(groups) > 1:
        reasons.append(f"groups must be the same in all norms, got {', '.join(map(str, sorted(groups)))}")
    if len({d for d, _ in head_dims}) > 1 and not one_head:
        got = ", ".join(f"{d} of {channels}" for d, channels in sorted(head_dims))
        reasons.append(f"head_dim must be the same at all levels, or all their channels, got {got}")
    if unet.time_embedding.sinusoid.embed_dim != c["model_channels"]:
        got = unet.time_embedding.sinusoid.embed_dim
        reasons.append(f"sinusoid_dim must be model_channels = {c['model_channels']}, got {got}")
    if widths[0] != c["model_channels"]:
        reasons.append(f"the first of channel_multipliers must be 1, got {c['channel_multipliers'][0]}")
    if centre is not None and centre_groups is None and shift == "default":
        reasons.append("middle_groups must not be 0 with conditioning 'add'")
    if c["context_dim"] is not None:
        reasons.append(f"context_dim must be None, got {c['context_dim']}")
    if reasons:
        raise ValueError(f"diffusers' UNet2DModel cannot express this network: {'; '.join(reasons)}")

    table = unet.label_embedding
    head_dim = c["head_dim"] or (None if one_head else next(iter(head_dims))[0])
    return DEFAULTS | {
        "_class_name": "UNet2DModel",
        "_diffusers_version": "0.42.1",  # whose UNet2DModel this is
        "_null_class": table is not None and table.null_class is not None,
        "in_channels": c["in_channels"],
        "out_channels": unet.conv_out.out_channels,
        "time_embedding_dim": c["time_embed_dim"],
        "freq_shift": c["freq_shift"],
        "flip_sin_to_cos": False,
        "down_block_types": ["AttnDownBlock2D" if a else "DownBlock2D" for a in attends],
        "up_block_types": ["AttnUpBlock2D" if a else "UpBlock2D" for a in attends[::-1]],
        "block_out_channels": widths,
        "layers_per_block": c["num_res_blocks"],
        "downsample_padding": c["downsample_padding"],
        "dropout": c["dropout"],
        "attention_head_dim": None if head_dim == "all" else head_dim,
        "norm_num_groups": groups.pop(),
        "attn_norm_num_groups": centre_groups,
        "norm_eps": c["eps"],
        "resnet_time_scale_shift": shift,
        "add_attention": centre is not None,
        "num_class_embeds": None if table is None else len(table.table.weight),
    }
