"""The U-Net of diffusion models: residual blocks and self-attention at several resolutions, with skips across."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from ..nn import AttentionBlock, CrossAttentionBlock, Downsample, TimeResidualBlock, Upsample
from ..nn.fused import Map, on_maps
from ..nn.init import zeroed
from ..nn.norm import Norm, norm_silu
from ..nn.residual import Conditioning, projections
from .denoiser import Denoiser, constructor_arguments


class Stage(nn.Module):
    """A residual block, then self-attention and attention to the context, where there are any."""

    def __init__(
        self, residual: TimeResidualBlock, attention: AttentionBlock | None, cross_attention: CrossAttentionBlock | None = None
    ) -> None:
        super().__init__()
        self.residual = residual
        self.attention = attention
        self.cross_attention = cross_attention

    def forward(
        self, x: torch.Tensor, emb: torch.Tensor, context: torch.Tensor | None, mask: torch.Tensor | None
    ) -> torch.Tensor:
        x = self.residual(x, emb)
        x = x if self.attention is None else self.attention(x)
        return x if self.cross_attention is None else self.cross_attention(x, context, mask)


class Level(nn.Module):
    """The stages at one resolution and the way to the next. The U-Net runs them, as skips leave or join in between."""

    def __init__(self, stages: Sequence[Stage], resample: Downsample | Upsample | None) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.resample = resample


class UNet(Denoiser):
    """U-Net for images of any size from 2^(levels - 1) pixels on, odd sizes included.

    Down: at each level num_res_blocks residual blocks, then a halving; up: one block more per level, each with a
    skip. Every result on the way down, those of the first convolution and of the halvings included, is one skip.
    In the middle residual block, attention, residual block. The last convolution starts at zero.

    in_channels, out_channels: of the images and of the prediction (None: in_channels).
    model_channels, channel_multipliers: level i has model_channels * channel_multipliers[i] channels, rounded.
    time_embed_dim: width of the embedding of t and label that all blocks receive, even.
    attention_resolutions: down-sampling factors, not sizes in pixels: 1 is the full image, 2 half its height and
        width, 4 a quarter; factors that the network does not reach are passed over. (2, 4) with three multipliers
        means the two deepest levels.
    norm: group, instance or batch, in the residual blocks and before the last convolution; attention has group norm.
    groups: of the group norms, a divisor of all channel numbers, sums with skips included; None: for each norm the
        largest divisor of its channels not above 32. eps: added to the variance in all norms.
    head_dim: channels of one attention head; "all": one head; None: 64, or all channels where they are fewer.
    num_classes: None without labels. conditioning, dropout: see `TimeResidualBlock`.
    context_dim: features of a token of the context, to which every place with self-attention then attends as well
        (`CrossAttentionBlock`); None without a context.
    For networks that others have trained: sinusoid_dim, freq_shift: see `TimeMLP`. null_class: see `LabelEmbedding`.
    downsample_padding: see `Downsample`. middle_attention: whether the middle has attention; middle_groups: of its norm,
        None: as in the others, 0: no norm.

    Raises ValueError naming the argument. Calls: see `Denoiser.forward`.
    Source: Ho et al. 2020, "Denoising Diffusion Probabilistic Models", appendix B; Dhariwal & Nichol 2021,
    "Diffusion Models Beat GANs on Image Synthesis", section 3.
    """

    def __init__(
        self,
        in_channels: int = 1,
        model_channels: int = 64,
        time_embed_dim: int = 256,
        channel_multipliers: Sequence[float] = (1, 2, 2),
        num_res_blocks: int = 2,
        attention_resolutions: Sequence[int] = (2, 4),
        norm: Norm = "group",
        num_classes: int | None = None,
        groups: int | None = None,
        eps: float = 1e-5,
        head_dim: int | Literal["all"] | None = None,
        conditioning: Conditioning = "scale_shift",
        dropout: float = 0.0,
        out_channels: int | None = None,
        sinusoid_dim: int | None = None,
        freq_shift: float = 0,
        null_class: bool = True,
        downsample_padding: int = 1,
        middle_attention: bool = True,
        middle_groups: int | None = None,
        context_dim: int | None = None,
    ) -> None:
        config = constructor_arguments(locals())
        widths = [round(model_channels * m) for m in channel_multipliers]
        if not widths or min(widths) < 1:
            raise ValueError(
                f"channel_multipliers must be one or more numbers that make {model_channels} channels at least 1, "
                f"got {channel_multipliers}"
            )
        if num_res_blocks < 1:
            raise ValueError(f"num_res_blocks must be at least 1, got {num_res_blocks}")
        if any(f < 1 or f & (f - 1) for f in attention_resolutions):
            raise ValueError(
                "attention_resolutions must be down-sampling factors, powers of two (1, 2, 4, ...), "
                f"got {attention_resolutions}"
            )
        levels = len(channel_multipliers)
        super().__init__(
            in_channels, time_embed_dim, num_classes, levels, config, sinusoid_dim, freq_shift, null_class, context_dim
        )

        residual = partial(
            TimeResidualBlock,
            time_embed_dim=time_embed_dim,
            conditioning=conditioning,
            norm=norm,
            groups=groups,
            eps=eps,
            dropout=dropout,
        )

        def attention(channels: int, groups: int | None) -> Sequence[nn.Module]:
            """To the image itself, and to the context where there is one."""
            own = AttentionBlock(channels, head_dim, groups, eps)
            return [own] if context_dim is None else [own, CrossAttentionBlock(channels, context_dim, head_dim, groups, eps)]

        def stage(inputs: int, outputs: int, level: int) -> Stage:
            attends = 2**level in attention_resolutions
            return Stage(residual(inputs, outputs), *(attention(outputs, groups) if attends else [None]))

        self.conv_in = nn.Conv2d(in_channels, model_channels, 3, padding=1)

        channels, skips = model_channels, [model_channels]
        self.down = nn.ModuleList()
        for level, width in enumerate(widths):
            inputs = [channels] + [width] * (num_res_blocks - 1)
            down = Downsample(width, downsample_padding) if level < levels - 1 else None
            self.down.append(Level([stage(c, width, level) for c in inputs], down))
            skips += [width] * (num_res_blocks + (down is not None))
            channels = width

        middle_groups = groups if middle_groups is None else middle_groups
        first = residual(channels, channels)
        centre = attention(channels, middle_groups) if middle_attention else [None]
        self.middle = nn.ModuleList([Stage(first, *centre), Stage(residual(channels, channels), None)])

        self.up = nn.ModuleList()
        for level, width in reversed(list(enumerate(widths))):
            inputs = [channels] + [width] * num_res_blocks
            up = Upsample(width) if level > 0 else None
            self.up.append(Level([stage(c + skips.pop(), width, level) for c in inputs], up))
            channels = width

        self.norm_out = norm_silu(norm, channels, groups, eps)
        self.conv_out = zeroed(nn.Conv2d(channels, in_channels if out_channels is None else out_channels, 3, padding=1))

    @on_maps
    def predict(
        self, x: torch.Tensor, emb: torch.Tensor, context: torch.Tensor | None = None, mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        if isinstance(x, Map):
            emb = projections(self, emb)
        x = self.conv_in(x)
        skips = [x]
        for level in self.down:
            for stage in level.stages:
                x = stage(x, emb, context, mask)
                skips.append(x)
            if level.resample is not None:
                x = level.resample(x)
                skips.append(x)

        for stage in self.middle:
            x = stage(x, emb, context, mask)

        for level in self.up:
            for stage in level.stages:
                x = stage(torch.cat((x, skips.pop()), dim=1), emb, context, mask)
            if level.resample is not None:
                x = level.resample(x, size=skips[-1].shape[2:])

        return self.conv_out(self.norm_out(x))

    @classmethod
    def from_diffusers(cls, folder: str | Path, null_class: bool | None = None) -> UNet:
        """The network of a folder that diffusers' UNet2DModel wrote, or of a pipeline's folder with one in unet/, in eval mode.

        Its output is that of diffusers. The parameters are float32 whatever the file holds.
        null_class: whether the last class stands for "no label", as in networks trained for guidance; None: where
            `save_diffusers` said so.
        Raises FileNotFoundError for a missing file, and ValueError that names what there is no counterpart for: a value of the
        config, or tensors that are missing, left over or of another shape.
        """
        from .diffusers_folder import load

        return load(cls, folder, null_class)

    def save_diffusers(self, folder: str | Path, sample_size: int | None = None) -> Path:
        """Write config.json and diffusion_pytorch_model.safetensors, which diffusers' UNet2DModel.from_pretrained reads.

        sample_size: pixels of an image's side, for diffusers' pipelines. Returns the folder.
        Raises ValueError with all reasons for a network that UNet2DModel cannot express.
        """
        from .diffusers_folder import save

        return save(self, folder, sample_size)
