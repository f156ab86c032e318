"""Layers and blocks on top of `fastdiff.ops`."""

from .attention import AttentionBlock, CrossAttentionBlock
from .blocks import DownBlock, UpBlock
from .embedding import LabelEmbedding, TimeEmbedding, TimeMLP
from .film import FiLM
from .norm import GroupNorm, GroupNormSiLU, default_groups
from .packed import repack
from .resample import Downsample, Upsample
from .residual import TimeResidualBlock

__all__ = [
    "AttentionBlock",
    "CrossAttentionBlock",
    "DownBlock",
    "Downsample",
    "FiLM",
    "GroupNorm",
    "GroupNormSiLU",
    "LabelEmbedding",
    "TimeEmbedding",
    "TimeMLP",
    "TimeResidualBlock",
    "UpBlock",
    "Upsample",
    "default_groups",
    "repack",
]
