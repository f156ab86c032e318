import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.testing import assert_close

from fastdiff.models import NETWORKS, UNet
from fastdiff.nn import AttentionBlock, default_groups

SMALL = {"model_channels": 8, "time_embed_dim": 16, "num_res_blocks": 1}


def plain_unet(net: UNet, x: torch.Tensor, t: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
    """The U-Net of the standard form in torch alone, from the parameters of one with group norm and scale_shift."""
    p, c = dict(net.named_parameters()), net.config

    def conv(x: torch.Tensor, name: str, **options: int) -> torch.Tensor:
        return F.conv2d(x, p[f"{name}.weight"], p[f"{name}.bias"], **options)

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return F.linear(x, p[f"{name}.weight"], p[f"{name}.bias"])

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return F.group_norm(x, default_groups(x.shape[1]), p[f"{name}.weight"], p[f"{name}.bias"], c["eps"])

    def residual(x: torch.Tensor, name: str) -> torch.Tensor:
        scale, shift = linear(F.silu(emb), f"{name}.time_proj")[:, :, None, None].chunk(2, 1)
        h = norm(conv(F.silu(norm(x, f"{name}.norm1")), f"{name}.conv1", padding=1), f"{name}.norm2")
        h = conv(F.silu(h * (1 + scale) + shift), f"{name}.conv2", padding=1)
        return h + (x if h.shape == x.shape else conv(x, f"{name}.shortcut"))

    def attention(x: torch.Tensor, name: str) -> torch.Tensor:
        tokens = norm(x, f"{name}.norm").flatten(2).mT
        q, k, v = (
            part.unflatten(2, (-1, c["head_dim"])).transpose(1, 2) for part in linear(tokens, f"{name}.qkv").chunk(3, dim=2)
        )
        h = torch.softmax(q @ k.mT / c["head_dim"] ** 0.5, -1) @ v
        return x + linear(h.transpose(1, 2).flatten(2), f"{name}.proj").mT.reshape(x.shape)

    def stage(x: torch.Tensor, name: str, attends: bool) -> torch.Tensor:
        x = residual(x, f"{name}.residual")
        return attention(x, f"{name}.attention") if attends else x

    angle = t.double()[:, None] * 1e4 ** (-torch.arange(c["time_embed_dim"] // 2).double() / (c["time_embed_dim"] // 2))
    emb = torch.cat((angle.sin(), angle.cos()), 1).float().to(x.dtype)
    emb = linear(F.silu(linear(emb, "time_embedding.linear1")), "time_embedding.linear2")
    if c["num_classes"] is not None:
        chosen = torch.full((len(x),), c["num_classes"]) if labels is None else labels
        emb = emb + p["label_embedding.table.weight"][chosen]

    levels, blocks = len(c["channel_multipliers"]), c["num_res_blocks"]
    x = conv(x, "conv_in", padding=1)
    skips = [x]
    for i in range(levels):
        for j in range(blocks):
            x = stage(x, f"down.{i}.stages.{j}", 2**i in c["attention_resolutions"])
            skips.append(x)
        if i < levels - 1:
            x = conv(x, f"down.{i}.resample", stride=2, padding=1)
            skips.append(x)
    x = stage(stage(x, "middle.0", True), "middle.1", False)
    for i in range(levels):
        for j in range(blocks + 1):
            x = torch.cat((x, skips.pop()), 1)
            x = stage(x, f"up.{i}.stages.{j}", 2 ** (levels - 1 - i) in c["attention_resolutions"])
        if i < levels - 1:
            x = conv(F.interpolate(x, skips[-1].shape[2:]), f"up.{i}.resample", padding=1)
    assert not skips
    return conv(F.silu(norm(x, "norm_out")), "conv_out", padding=1)


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize(
    "arguments",
    [
        {"channel_multipliers": (1, 2, 2), "num_res_blocks": 2, "eps": 1e-3},
        {"channel_multipliers": (2, 1), "attention_resolutions": (1,), "in_channels": 3, "out_channels": 6},
    ],
)
def test_unet_against_plain_torch(awake, arguments: dict, labelled: bool) -> None:
    net = awake(UNet(**{**SMALL, "num_classes": 5, "head_dim": 4, **arguments})).double()
    x, t = torch.randn(2, net.in_channels, 7, 9).double().requires_grad_(), torch.tensor([3, 700])
    labels = torch.tensor([0, 5]) if labelled else None
    got, want = net(x, t, labels), plain_unet(net, x, t, labels)
    assert got.shape == (2, arguments.get("out_channels", 1), 7, 9)
    assert_close(got, want)
    inputs = [x, *net.parameters()]
    probe = torch.randn_like(got)
    assert_close(torch.autograd.grad((got * probe).sum(), inputs), torch.autograd.grad((want * probe).sum(), inputs))


def test_unet_starts_at_zero() -> None:
    x = torch.randn(2, 1, 8, 8)
    assert_close(UNet(**SMALL)(x, 3), torch.zeros_like(x))


def test_mnist_size_unet() -> None:
    net = UNet(in_channels=1, model_channels=64, time_embed_dim=256).eval()
    with torch.no_grad():
        assert net(torch.randn(2, 1, 28, 28), torch.tensor([0, 999])).shape == (2, 1, 28, 28)
    attending = [name for name, module in net.named_modules() if isinstance(module, AttentionBlock)]
    assert attending == [
        *(f"down.{level}.stages.{i}.attention" for level in (1, 2) for i in range(2)),
        "middle.0.attention",
        *(f"up.{level}.stages.{i}.attention" for level in (0, 1) for i in range(3)),
    ]


@settings(max_examples=15, deadline=None)
@given(st.integers(4, 17), st.integers(4, 17))
def test_unet_takes_any_size(height: int, width: int) -> None:
    x = torch.randn(1, 1, height, width)
    with torch.no_grad():
        assert UNet(**SMALL)(x, 0).shape == x.shape


@pytest.mark.filterwarnings("ignore:conditioning=")
@pytest.mark.parametrize("norm", ["group", "instance", "batch"])
@pytest.mark.parametrize("conditioning", ["scale_shift", "scale", "add"])
def test_every_norm_and_conditioning_trains(awake, norm: str, conditioning: str) -> None:
    net = awake(UNet(**SMALL, norm=norm, groups=4, conditioning=conditioning, num_classes=3, dropout=0.1))
    x, labels = torch.randn(2, 1, 8, 8), torch.tensor([0, 2])
    net(x, torch.tensor([1, 9]), labels).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    if norm == "instance" and conditioning != "scale_shift":
        return  # there the norm removes the conditioning
    for layer in (net.time_embedding.linear1, net.time_embedding.linear2):
        assert layer.weight.grad.abs().max() > 0
    assert net.label_embedding.table.weight.grad.abs().sum(1).count_nonzero() == 2
    net.eval()
    with torch.no_grad():
        y = net(x, 1, labels)
        assert (y - net(x, 500, labels)).abs().max() > 1e-3
        assert (y - net(x, 1, labels.flip(0))).abs().max() > 1e-3


def test_a_number_stands_for_the_whole_batch(awake) -> None:
    net, x = awake(UNet(**SMALL)).eval(), torch.randn(3, 1, 8, 8)
    want = net(x, torch.tensor([7, 7, 7]))
    for t in (7, 7.0, torch.tensor(7)):
        assert_close(net(x, t), want)


def test_no_labels_are_null_labels(awake) -> None:
    net, x = awake(UNet(**SMALL, num_classes=4)), torch.randn(2, 1, 8, 8)
    assert_close(net(x, 5), net(x, 5, torch.tensor([4, 4])))


@pytest.mark.parametrize(
    "arguments",
    [{}, {"channel_multipliers": (1, 2), "norm": "batch", "num_classes": 3, "out_channels": 2, "head_dim": 4}],
)
def test_config_rebuilds_the_network(arguments: dict) -> None:
    net = UNet(**{**SMALL, **arguments})
    config = json.loads(json.dumps(net.config))
    assert config == net.config
    again = NETWORKS["UNet"](**config)
    assert again.config == config
    assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in net.state_dict().items()}
    config["channel_multipliers"].append(9)
    net.config["channel_multipliers"].append(9)
    assert 9 not in net.config["channel_multipliers"]


@pytest.mark.parametrize(
    ("x", "t", "labels", "message"),
    [
        (torch.zeros(2, 3, 8, 8), 0, None, "x must have in_channels = 1 channels"),
        (torch.zeros(2, 8, 8), 0, None, "x must have 4 dimensions"),
        (torch.zeros(2, 1, 3, 8), 0, None, "x is too small: this network needs at least 4x4 pixels, got 3x8"),
        (torch.zeros(2, 1, 8, 8), torch.zeros(3), None, r"t must have shape \(2,\)"),
        (torch.zeros(2, 1, 8, 8), torch.zeros(2, 1), None, r"t must have shape \(2,\)"),
        (torch.zeros(2, 1, 8, 8), 0, torch.tensor([0]), r"labels must have shape \(2,\)"),
        (torch.zeros(2, 1, 8, 8), 0, torch.tensor([0, 9]), r"labels must be in 0\.\.3"),
    ],
)
def test_unet_names_what_is_wrong(x: torch.Tensor, t, labels: torch.Tensor | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        UNet(**SMALL, num_classes=4)(x, t, labels)


def test_labels_need_classes() -> None:
    with pytest.raises(ValueError, match="labels were given to a network without classes"):
        UNet(**SMALL)(torch.zeros(2, 1, 8, 8), 0, torch.tensor([0, 1]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"channel_multipliers": ()}, "channel_multipliers"),
        ({"num_res_blocks": 0}, "num_res_blocks"),
        ({"attention_resolutions": (14, 7)}, "attention_resolutions must be down-sampling factors"),
        ({"norm": "layer"}, "norm must be one of"),
        ({"conditioning": "film"}, "conditioning must be one of"),
        ({"groups": 3}, "groups must be a divisor"),
        ({"head_dim": 3}, "head_dim must be a divisor"),
        ({"time_embed_dim": 15}, "embed_dim must be even"),
    ],
)
def test_constructor_names_what_is_wrong(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        UNet(**{**SMALL, **arguments})


def test_attention_factors_out_of_reach_are_passed_over() -> None:
    assert list(UNet(**SMALL, channel_multipliers=(1, 2), attention_resolutions=(2, 4)).state_dict()) == list(
        UNet(**SMALL, channel_multipliers=(1, 2), attention_resolutions=(2,)).state_dict()
    )
