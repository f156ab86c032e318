"""From a configuration to a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .schema import Config, DiffusionConfig

if TYPE_CHECKING:
    from ..diffusion import DiffusionModel, NoiseScheduler


def build_scheduler(config: DiffusionConfig) -> NoiseScheduler:
    """The noise schedule of a config."""
    from ..diffusion import NoiseScheduler

    return NoiseScheduler(
        config.timesteps,
        config.beta_start,
        config.beta_end,
        config.schedule_type,
        zero_terminal_snr=config.zero_terminal_snr,
        rescale_betas=True,  # the betas are stated for T = 1000; without it a short schedule does not end in noise
    )


def build_model(config: Config, img_shape: tuple[int, int, int], num_classes: int | None = None) -> DiffusionModel:
    """The model of a config, with new weights from torch's generator.

    img_shape: (H, W, C) of the data. num_classes: of the data, or None; not used unless model.class_conditional.
    """
    from ..diffusion import DiffusionModel
    from ..models import NETWORKS

    m = config.model
    options: dict[str, Any] = {
        "in_channels": img_shape[2],
        "time_embed_dim": m.time_embed_dim,
        "num_classes": num_classes if m.class_conditional else None,
    }
    if m.network == "SimpleUNet":
        options["base_channels"] = m.model_channels
    else:
        same = ("model_channels", "channel_multipliers", "num_res_blocks", "attention_resolutions", "norm", "groups")
        options |= {name: getattr(m, name) for name in (*same, "head_dim", "conditioning", "dropout")}
    network = NETWORKS[m.network](**options)
    return DiffusionModel(
        network=network,
        scheduler=build_scheduler(config.diffusion),
        prediction=config.diffusion.prediction,
        loss=config.diffusion.loss,
        loss_weighting=config.diffusion.loss_weighting,
        img_shape=img_shape,
        label_dropout=config.diffusion.label_dropout if options["num_classes"] is not None else 0.0,
    )
