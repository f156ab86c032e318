"""Layers and blocks on top of `fastdiff.ops`. Where torch's own layer is as good as it gets, it is here under its name."""

from torch.nn import AdaptiveAvgPool2d, AvgPool2d, BatchNorm2d, Dropout2d, LayerNorm, MaxPool2d

from .attention import AttentionBlock, CrossAttentionBlock
from .blocks import DownBlock, UpBlock
from .cnn_blocks import BottleneckBlock, ConvNormAct, InceptionModule, ResidualBlock, VGGBlock, conv_block
from .conv import Conv2d, DepthwiseSeparableConv2d
from .embedding import LabelEmbedding, TimeEmbedding, TimeMLP
from .film import FiLM
from .norm import GroupNorm, GroupNormSiLU, default_groups
from .packed import repack
from .resample import Downsample, Upsample
from .residual import TimeResidualBlock

__all__ = [
    "AdaptiveAvgPool2d",
    "AttentionBlock",
    "AvgPool2d",
    "BatchNorm2d",
    "BottleneckBlock",
    "Conv2d",
    "ConvNormAct",
    "CrossAttentionBlock",
    "DepthwiseSeparableConv2d",
    "DownBlock",
    "Downsample",
    "Dropout2d",
    "FiLM",
    "GroupNorm",
    "GroupNormSiLU",
    "InceptionModule",
    "LabelEmbedding",
    "LayerNorm",
    "MaxPool2d",
    "ResidualBlock",
    "TimeEmbedding",
    "TimeMLP",
    "TimeResidualBlock",
    "UpBlock",
    "Upsample",
    "VGGBlock",
    "conv_block",
    "default_groups",
    "repack",
]
