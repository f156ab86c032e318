"""Networks. `NETWORKS` (of diffusion) and `CLASSIFIERS` find a class by its name, to rebuild it: `NETWORKS[name](**config)`."""

from torch import nn

from .alexnet import AlexNet
from .googlenet import GoogLeNet
from .lenet import LeNet5
from .mobilenet import MobileNetV1
from .resnet import ResNet
from .simple_unet import SimpleUNet
from .small_cnn import DeeperCNN, SmallCNN
from .unet import UNet
from .vgg import VGG

CLASSIFIERS: dict[str, type[nn.Module]] = {
    network.__name__: network for network in (AlexNet, DeeperCNN, GoogLeNet, LeNet5, MobileNetV1, ResNet, SmallCNN, VGG)
}
NETWORKS: dict[str, type[nn.Module]] = {"UNet": UNet, "SimpleUNet": SimpleUNet}

__all__ = [
    "CLASSIFIERS",
    "NETWORKS",
    "VGG",
    "AlexNet",
    "DeeperCNN",
    "GoogLeNet",
    "LeNet5",
    "MobileNetV1",
    "ResNet",
    "SimpleUNet",
    "SmallCNN",
    "UNet",
]
