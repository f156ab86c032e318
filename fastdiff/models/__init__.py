"""Networks. `NETWORKS` finds a class by its name, to rebuild a network: `NETWORKS[name](**config)`."""

from torch import nn

from .simple_unet import SimpleUNet
from .unet import UNet

NETWORKS: dict[str, type[nn.Module]] = {"UNet": UNet, "SimpleUNet": SimpleUNet}

__all__ = ["NETWORKS", "SimpleUNet", "UNet"]
