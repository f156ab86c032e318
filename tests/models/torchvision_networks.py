"""torchvision's classification networks: which there are, with what weights they are compared, and what is recorded of them.

    python tests/models/torchvision_networks.py          writes torchvision.json; needs torchvision, whose version it notes

Its compiled part does not import beside a CPU build of torch; its networks do once the operators that it wants are declared.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastdiff.models import VGG, AlexNet, ResNet

FILE = Path(__file__).with_name("torchvision.json")
NETWORKS: dict[str, Callable[..., nn.Module]] = {"alexnet": AlexNet}
for _depth in (11, 13, 16, 19):
    NETWORKS[f"vgg{_depth}"] = lambda depth=_depth, **options: VGG(depth, **options)
    NETWORKS[f"vgg{_depth}_bn"] = lambda depth=_depth, **options: VGG(depth, batch_norm=True, **options)
for _depth in (18, 34, 50, 101, 152):
    NETWORKS[f"resnet{_depth}"] = lambda depth=_depth, **options: ResNet.of_depth(depth, **options)
IN_FULL = ("alexnet", "vgg11", "vgg11_bn", "resnet18", "resnet50")  # of others a hash of the list is enough
COMPARED = {"alexnet": 63, "vgg11_bn": 32, "resnet18": 64, "resnet50": 33}  # pixels of a side
CLASSES = 7


@cache
def torchvision_models() -> Any:
    """`torchvision.models`; None where there is none."""
    if find_spec("torchvision") is None:
        return None
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    from torchvision import models

    models.library = library  # an operator lives as long as its library
    return models


def keys(network: nn.Module) -> list[str]:
    return [f"{name} {'x'.join(map(str, v.shape))}".strip() for name, v in network.state_dict().items()]


def digest(lines: list[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    """In eval mode, with weights that depend on their place and shape alone and keep the scale of activations."""
    with torch.device("meta"):  # to draw them once
        network = make().to_empty(device="cpu")
    with torch.no_grad():
        for i, (name, v) in enumerate(network.state_dict().items()):
            generator = torch.Generator().manual_seed(i)
            if not v.is_floating_point():
                v.zero_()
            elif v.dim() > 1:
                v.uniform_(-1, 1, generator=generator).mul_((6 / v[0].numel()) ** 0.5)
            else:
                low, high = (0.5, 1) if name.endswith(("weight", "var")) else (-0.1, 0.1)
                v.uniform_(low, high, generator=generator)
    return network.eval()


def images(size: int) -> torch.Tensor:
    return torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1


def main() -> None:
    models = torchvision_models()
    import torchvision

    record: dict[str, Any] = {"torchvision": torchvision.__version__, "torch": torch.__version__, "keys": {}, "digests": {}}
    for name in NETWORKS:
        with torch.device("meta"):
            lines = keys(getattr(models, name)())
        if name in IN_FULL:
            record["keys"][name] = lines
        else:
            record["digests"][name] = digest(lines)
    with torch.no_grad():
        record["logits"] = {
            name: [
                [round(v, 5) for v in row]
                for row in seeded(partial(getattr(models, name), num_classes=CLASSES))(images(size)).tolist()
            ]
            for name, size in COMPARED.items()
        }
    FILE.write_text(json.dumps(record, indent=0) + "\n")


if __name__ == "__main__":
    main()
