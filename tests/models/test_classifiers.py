"""Classification networks: torchvision's parameters and logits, inference by fused convolutions, transfer, errors."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from oracle import needs_kernel
from torch import nn

from fastdiff.models import CLASSIFIERS, VGG, AlexNet, DeeperCNN, GoogLeNet, LeNet5, MobileNetV1, ResNet, SmallCNN
from fastdiff.nn.fused.convolution import Convolution

from .torchvision_networks import CLASSES, COMPARED, FILE, IN_FULL, NETWORKS, digest, images, keys, seeded, torchvision_models

RECORD = json.loads(FILE.read_text())
SMALL: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "LeNet5": (LeNet5, (1, 28, 28)),
    "SmallCNN": (SmallCNN, (3, 32, 32)),
    "DeeperCNN": (DeeperCNN, (3, 9, 8)),
    "MobileNetV1": (lambda: MobileNetV1(5, width=0.25), (3, 33, 40)),
    "ResNet, basic, CIFAR": (lambda: ResNet("basic", [1, 1, 1, 1], 5, stem="cifar"), (3, 17, 16)),
    "ResNet, bottleneck": (lambda: ResNet("bottleneck", [1, 1, 1, 1], 5), (3, 40, 33)),
    "GoogLeNet": (lambda: GoogLeNet(5), (3, 33, 40)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_parameters_are_torchvisions(name: str) -> None:
    with torch.device("meta"):
        lines = keys(NETWORKS[name]())
    if name in IN_FULL:
        assert lines == RECORD["keys"][name]
    else:
        assert digest(lines) == RECORD["digests"][name]


@pytest.mark.parametrize("name", COMPARED)
def test_logits_are_torchvisions(name: str) -> None:
    net, x, want = (
        seeded(partial(NETWORKS[name], num_classes=CLASSES)),
        images(COMPARED[name]),
        torch.tensor(RECORD["logits"][name]),
    )
    for grad in (True, False):  # by the layers, and fused
        with torch.set_grad_enabled(grad):
            torch.testing.assert_close(net(x), want, rtol=1e-3, atol=1e-3 * float(want.abs().max()))


@pytest.mark.parametrize("name", ["resnet18", "alexnet"])
def test_beside_torchvision_itself(name: str) -> None:
    if (models := torchvision_models()) is None:
        pytest.skip("torchvision is not installed")
    theirs = seeded(partial(getattr(models, name), num_classes=CLASSES))
    ours = NETWORKS[name](num_classes=CLASSES).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    with torch.no_grad():
        torch.testing.assert_close(ours(images(64)), theirs(images(64)), rtol=1e-4, atol=1e-4)


def test_sizes_that_are_known() -> None:
    with torch.device("meta"):
        counts = {
            61_100_840: AlexNet(),
            11_689_512: ResNet("basic", [2, 2, 2, 2]),
            25_557_032: ResNet.of_depth(50),
            138_357_544: VGG(16),
            545_290: SmallCNN(in_ch=3, num_classes=10),
            410_826: DeeperCNN(num_classes=10),
            61_706: LeNet5(num_classes=10),
            4_231_976: MobileNetV1(),
            6_624_904: GoogLeNet(large_kernel=3),
        }
    for count, net in counts.items():
        assert sum(p.numel() for p in net.parameters()) == count, type(net).__name__
    assert all(net.num_classes == (10 if count < 10**6 else 1000) for count, net in counts.items())


def made(case: str) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    make, shape = SMALL[case]
    return seeded(make), torch.randn(2, *shape)


@needs_kernel("conv2d_fused")
@pytest.mark.parametrize("case", SMALL)
def test_inference_equals_the_layers(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = made(case)
    runs, own = [], Convolution.run
    monkeypatch.setattr(Convolution, "run", lambda self, *a: runs.append(self) or own(self, *a))
    layers = net(x).detach()
    with torch.autocast("cpu", torch.bfloat16):
        layers_bf16 = net(x).detach().float()
    assert not runs
    with torch.no_grad():
        fused = net(x)
        assert len(runs) == sum(isinstance(m, nn.Conv2d) for m in net.modules())
        with torch.autocast("cpu", torch.bfloat16):
            fused_bf16 = net(x).float()
        truth = net.double()(x.double())
    torch.testing.assert_close(fused, layers, rtol=1e-3, atol=1e-4 * float(layers.abs().max()))
    error, allowed = (float((v - truth).norm() / truth.norm()) for v in (fused_bf16, layers_bf16))
    assert error <= max(2 * allowed, 0.02), (error, allowed)


@pytest.mark.parametrize("case", SMALL)
def test_trains_and_is_rebuilt_from_its_config(case: str) -> None:
    net, x = made(case)
    net.train()(x).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    again = CLASSIFIERS[type(net).__name__](**json.loads(json.dumps(net.config)))
    again.load_state_dict(net.state_dict())
    assert repr(again) == repr(net)


def test_pretrained_weights_for_other_classes(tmp_path: Path) -> None:
    source, net = seeded(partial(ResNet, "basic", [1] * 4, 9)), ResNet("basic", [1] * 4, 4)
    head = net.fc.weight.detach().clone()
    assert net.load_pretrained(source.state_dict()) == ["fc.weight", "fc.bias"]
    assert torch.equal(net.fc.weight, head)
    assert torch.equal(net.layer3[0].bn1.running_var, source.layer3[0].bn1.running_var)

    same = ResNet("basic", [1] * 4, 9)
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    assert same.load_pretrained(tmp_path / "weights.pth") == []
    assert torch.equal(same.fc.weight, source.fc.weight)
    from safetensors.torch import save_file

    old = {k: v for k, v in source.state_dict().items() if not k.endswith("num_batches_tracked")}  # as older files are
    save_file(old, tmp_path / "weights.safetensors")
    assert ResNet("basic", [1] * 4, 9).load_pretrained(str(tmp_path / "weights.safetensors")) == []

    same.replace_head(3)
    assert same.num_classes == same.config["num_classes"] == 3
    assert same(images(32)).shape == (2, 3)
    with torch.device("meta"):
        vgg = VGG(11, num_classes=2)
    vgg.replace_head(5)
    assert vgg.classifier[6].weight.shape == (5, 4096)


def test_weights_of_another_network() -> None:
    net = ResNet("basic", [1] * 4, 4)
    weights = net.state_dict()
    weights["layer1.0.conv1.weight"] = torch.zeros(64, 64, 1, 1)
    for changed, message in (
        (weights, r"layer1\.0\.conv1\.weight must have shape \(64, 64, 3, 3\), got \(64, 64, 1, 1\)"),
        ({}, "not weights of this ResNet: it lacks bn1.bias, bn1.running_mean, bn1.running_var, bn1.weight, conv1.weight and"),
        (net.state_dict() | {"aux.weight": head_of(net)}, "it has aux.weight, which this network does not"),
        ({k: v for k, v in net.state_dict().items() if k != "fc.bias"}, "it lacks fc.bias"),
    ):
        with pytest.raises(ValueError, match=message):
            net.load_pretrained(changed)


def head_of(net: nn.Module) -> torch.Tensor:
    return net.get_submodule(net.head).weight


def test_a_frozen_backbone_stays_and_the_head_learns() -> None:
    net, x = ResNet("basic", [1] * 4, 4, stem="cifar"), torch.randn(4, 3, 8, 8)
    net.freeze_backbone()
    net.train()
    assert net.training
    assert not net.bn1.training
    before = {k: v.clone() for k, v in net.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.1)
    net(x).square().mean().backward()
    optimizer.step()
    assert {k for k, v in net.state_dict().items() if not torch.equal(v, before[k])} == {"fc.weight", "fc.bias"}
    net.unfreeze()
    assert net.bn1.training
    net(x).square().mean().backward()
    assert all(p.grad is not None for p in net.parameters())
    assert not torch.equal(net.bn1.running_mean, before["bn1.running_mean"])


def test_a_frozen_backbone_drops_nothing() -> None:
    net = SmallCNN()
    net.classifier.insert(2, nn.Dropout(0.5))
    net.head = "classifier.3"
    net.freeze_backbone()
    assert [m.training for m in net.train().classifier] == [False, False, False, True]


WRONG: list[tuple[Callable[[], Any], str]] = [
    (lambda: LeNet5()(torch.zeros(1, 1, 32, 32)), "x must be of 28x28 pixels for LeNet5, got 32x32"),
    (lambda: SmallCNN()(torch.zeros(1, 3, 32, 31)), "x must be of 32x32 pixels for SmallCNN, got 32x31"),
    (lambda: DeeperCNN()(torch.zeros(1, 3, 3, 9)), "x must be of at least 4x4 pixels for DeeperCNN, got 3x9"),
    (lambda: LeNet5()(torch.zeros(1, 3, 28, 28)), r"x must have in_channels = 1 channels, got shape \(1, 3, 28, 28\)"),
    (lambda: LeNet5()(torch.zeros(28, 28)), r"x must have 4 dimensions \[N, C, H, W\], got shape \(28, 28\)"),
    (lambda: LeNet5(0), "num_classes must be at least 1, got 0"),
    (lambda: SmallCNN(in_ch=0), "in_channels must be at least 1, got 0"),
    (lambda: SmallCNN().replace_head(0), "num_classes must be at least 1, got 0"),
    (lambda: VGG(12), "depth must be one of 11, 13, 16, 19, got 12"),
    (lambda: ResNet.of_depth(20), "depth must be one of 18, 34, 50, 101, 152, got 20"),
    (lambda: ResNet("plain"), "block_type must be one of basic, bottleneck, got 'plain'"),
    (lambda: ResNet(stem="mnist"), "stem must be one of imagenet, cifar, got 'mnist'"),
    (lambda: ResNet(num_blocks=[2, 2]), r"num_blocks must be four numbers from 1 on, got \[2, 2\]"),
    (lambda: GoogLeNet(large_kernel=4), "large_kernel must be 3 or 5, got 4"),
    (lambda: MobileNetV1(width=0), "width must be above 0, got 0"),
]


@pytest.mark.parametrize(("call", "message"), WRONG, ids=lambda v: v[:40] if isinstance(v, str) else "")
def test_wrong_arguments(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("name", ["alexnet", "vgg11", "GoogLeNet"])
def test_the_least_size_is_the_least_that_works(name: str) -> None:
    with torch.device("meta"):
        net = GoogLeNet() if name == "GoogLeNet" else NETWORKS[name]()
        least = net.min_size
        assert net.eval()(torch.zeros(1, 3, least, least)).shape == (1, 1000)
        with pytest.raises(RuntimeError):
            net.classify(torch.zeros(1, 3, least - 1, least - 1))
