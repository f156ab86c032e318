"""Folders of diffusers' UNet2DModel: held by what it gave, names, shapes and outputs, and by itself where it is installed."""

from __future__ import annotations

import json
import logging
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
import torch
from record_diffusers import CASES, LABELS, OLD_NAMES, RECORD, T, images, renamed, weight
from safetensors.torch import load_file, save_file

from fastdiff.models import UNet
from fastdiff.models.diffusers_config import DEFAULTS
from fastdiff.nn import fused

WEIGHTS = "diffusion_pytorch_model.safetensors"
TODAY = {old: today for today, old in OLD_NAMES.items()}
recorded: dict[str, dict[str, Any]] = json.loads(RECORD.read_text())


def tensors_of(case: str) -> dict[str, torch.Tensor]:
    return {name: weight(renamed(name, TODAY), tuple(shape)) for name, shape in recorded[case]["shapes"].items()}


def folder_of(case: str, path: Path, tensors: dict[str, torch.Tensor] | None = None, **config: Any) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(recorded[case]["config"] | config))
    save_file(tensors_of(case) if tensors is None else tensors, path / WEIGHTS)
    return path


def small(**options: Any) -> UNet:
    defaults = {"channel_multipliers": (1, 2), "groups": 4, "sinusoid_dim": 8, "attention_resolutions": (2,)}
    return UNet(1, 8, 24, num_res_blocks=1, **(defaults | options))


def output(net: UNet) -> torch.Tensor:
    labels = None if net.label_embedding is None else LABELS
    with torch.no_grad():
        return net(images(net.in_channels), T, labels)


def assert_recorded(case: str, got: torch.Tensor) -> None:
    want = torch.tensor(recorded[case]["output"]).view(got.shape)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5 * float(want.abs().max()))


@pytest.mark.parametrize("case", CASES)
def test_output_is_that_of_diffusers(case: str, tmp_path: Path) -> None:
    net = UNet.from_diffusers(folder_of(case, tmp_path))
    assert not net.training
    assert_recorded(case, output(net))
    with fused.by_layers():
        assert_recorded(case, output(net))


@pytest.mark.parametrize("case", CASES)
def test_saved_again_it_is_the_same_folder(case: str, tmp_path: Path) -> None:
    net = UNet.from_diffusers(folder_of(case, tmp_path / "a"))
    saved = net.save_diffusers(tmp_path / "b", sample_size=8)
    shapes = {renamed(name, TODAY): shape for name, shape in recorded[case]["shapes"].items()}
    tensors = load_file(saved / WEIGHTS)
    assert {name: list(tensor.shape) for name, tensor in tensors.items()} == shapes
    sinusoid = "time_embedding.linear_1.weight"  # ours is [sin, cos], so what stands behind it may have changed places
    for name, tensor in tensors.items():
        want = weight(name, tuple(tensor.shape))
        swapped = name == sinusoid and recorded[case]["config"].get("flip_sin_to_cos", True)
        assert torch.equal(tensor, torch.cat(want.chunk(2, 1)[::-1], 1) if swapped else want), name
    config = json.loads((saved / "config.json").read_text())
    for key, value in recorded[case]["config"].items():
        value = "silu" if value == "swish" else value
        value = [v.removeprefix("UNetRes") for v in value] if key == "up_block_types" else value
        assert config[key] == value, key
    assert config["flip_sin_to_cos"] is False
    again = UNet.from_diffusers(saved)
    assert again.config == net.config
    assert torch.equal(output(again), output(net))


def test_a_pipelines_folder_and_a_pickled_file(tmp_path: Path) -> None:
    case = "as the first checkpoints"
    folder = folder_of(case, tmp_path / "unet")
    (folder / WEIGHTS).unlink()
    torch.save(tensors_of(case), folder / "diffusion_pytorch_model.bin")
    assert_recorded(case, output(UNet.from_diffusers(tmp_path)))


def test_half_precision_becomes_float32(tmp_path: Path) -> None:
    halves = {name: tensor.half() for name, tensor in tensors_of("one level").items()}
    net = UNet.from_diffusers(folder_of("one level", tmp_path, halves))
    assert {p.dtype for p in net.parameters()} == {torch.float32}
    assert torch.equal(net.conv_in.weight, halves["conv_in.weight"].float())


def test_the_last_class_as_null_class(tmp_path: Path) -> None:
    case, x = "classes, no attention in the middle", images(1)
    folder = folder_of(case, tmp_path / "a")
    with torch.no_grad():
        net = UNet.from_diffusers(folder, null_class=True)
        assert net.config["num_classes"] == 2
        assert torch.equal(net(x, T), net(x, T, torch.tensor([2, 2])))
        with pytest.raises(ValueError, match="labels must be given"):
            UNet.from_diffusers(folder)(x, T)
        with pytest.raises(ValueError, match=r"labels must be in 0\.\.2, got 3"):
            UNet.from_diffusers(folder)(x, T, torch.tensor([0, 3]))
        again = UNet.from_diffusers(net.save_diffusers(tmp_path / "b"))
    assert again.config == net.config


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"_class_name": "UNet2DConditionModel"}, "_class_name must be UNet2DModel, got 'UNet2DConditionModel'"),
        ({"cross_attention_dim": 8}, "keys that UNet2DModel does not: cross_attention_dim"),
        ({"act_fn": "mish"}, "act_fn must be 'silu' or 'swish', got 'mish'"),
        ({"mid_block_scale_factor": 1.4}, "mid_block_scale_factor must be 1, got 1.4"),
        ({"center_input_sample": True}, "center_input_sample must be False, got True"),
        ({"time_embedding_type": "fourier"}, "time_embedding_type must be 'positional', got 'fourier'"),
        ({"class_embed_type": "timestep"}, "class_embed_type must be None, got 'timestep'"),
        ({"downsample_padding": 2}, "downsample_padding must be 0 or 1, got 2"),
        ({"downsample_type": "resnet"}, "downsample_type must be 'conv' or None, got 'resnet'"),
        ({"mid_block_type": None}, "mid_block_type must be 'UNetMidBlock2D', got None"),
        ({"resnet_time_scale_shift": "spatial"}, "resnet_time_scale_shift must be"),
        ({"down_block_types": ["DownBlock2D", "SkipDownBlock2D"]}, "down_block_types must be of DownBlock2D and .*SkipDown"),
        ({"up_block_types": ["UpBlock2D", "AttnUpBlock2D"]}, "up_block_types must have attention at the levels of"),
        ({"block_out_channels": [8, 16, 16]}, "down_block_types must name a block for each of the 3"),
        ({"attention_head_dim": 5}, "attention_head_dim must divide 16 channels, or be null, got 5"),
        ({"norm_num_groups": None}, "norm_num_groups must be an integer, got None"),
        ({"norm_num_groups": 3}, "groups must be a divisor of the 8 channels"),
    ],
)
def test_what_there_is_no_counterpart_for_is_named(config: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        UNet.from_diffusers(folder_of("defaults", tmp_path, **config))


def test_every_tensor_has_one_place(tmp_path: Path) -> None:
    tensors = tensors_of("defaults")
    del tensors["mid_block.attentions.0.to_k.bias"]
    tensors["conv_out.bias"] = torch.zeros(2)
    tensors["extra.weight"] = torch.zeros(1)
    with pytest.raises(ValueError, match="do not fit") as error:
        UNet.from_diffusers(folder_of("defaults", tmp_path, tensors))
    assert "1 tensors missing: mid_block.attentions.0.to_k.bias" in str(error.value)
    assert "1 tensors of another shape: conv_out.bias (2,) instead of (1,)" in str(error.value)
    assert "1 tensors left over: extra.weight" in str(error.value)


def test_files_that_are_missing_or_damaged(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"neither config.json nor unet/config.json"):
        UNet.from_diffusers(tmp_path)
    folder = folder_of("one level", tmp_path)
    (folder / WEIGHTS).rename(folder / "diffusion_pytorch_model.fp16.safetensors")
    with pytest.raises(FileNotFoundError, match=r"neither .* only diffusion_pytorch_model.fp16.safetensors"):
        UNet.from_diffusers(folder)
    (folder / WEIGHTS).write_bytes(b"damaged!!")
    with pytest.raises(ValueError, match=r"diffusion_pytorch_model\.safetensors is damaged"):
        UNet.from_diffusers(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config.json is no JSON"):
        UNet.from_diffusers(folder)


@pytest.mark.parametrize(
    ("options", "reasons"),
    [
        (
            {"conditioning": "scale", "channel_multipliers": (2, 9), "sinusoid_dim": 16, "groups": 2},
            [
                "conditioning must be one of add, scale_shift, got 'scale'",
                "sinusoid_dim must be model_channels = 8, got 16",
                "the first of channel_multipliers must be 1, got 2",
            ],
        ),
        ({"groups": None}, ["groups must be the same in all norms, got 8, 16, 24, 32"]),
        ({"norm": "batch"}, ["norm must be 'group', got 'batch'"]),
        (
            {"attention_resolutions": (1, 2), "channel_multipliers": (1, 9)},
            ["head_dim must be the same at all levels, or all their channels, got 8 of 8, 36 of 72"],
        ),
        ({"middle_groups": 0, "conditioning": "add"}, ["middle_groups must not be 0 with conditioning 'add'"]),
    ],
)
def test_all_reasons_against_saving(options: dict[str, Any], reasons: list[str], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="UNet2DModel cannot express this network") as error:
        small(**options).save_diffusers(tmp_path / "folder")
    for reason in reasons:
        assert reason in str(error.value), error.value
    assert not list(tmp_path.iterdir())


NETWORKS: dict[str, dict[str, Any]] = {
    "attention in the middle alone": {"attention_resolutions": (), "head_dim": 8},
    "a head at each level, classes": {"num_classes": 2, "conditioning": "add", "head_dim": "all"},
    "as the first checkpoints": {
        "conditioning": "add",
        "downsample_padding": 0,
        "freq_shift": 1,
        "attention_resolutions": (1, 2),
    },
    "no attention in the middle": {"middle_attention": False, "head_dim": 4, "eps": 1e-4},
}


@pytest.mark.parametrize("name", NETWORKS)
def test_diffusers_reads_what_we_write(name: str, awake, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
    logger = logging.getLogger("diffusers")
    logger.addHandler(caplog.handler)
    net = awake(small(**NETWORKS[name])).eval()
    folder = net.save_diffusers(tmp_path, sample_size=8)
    theirs = diffusers.UNet2DModel.from_pretrained(folder, low_cpu_mem_usage=False).eval()
    logger.removeHandler(caplog.handler)
    assert not caplog.records
    labels = None if net.label_embedding is None else LABELS
    with torch.no_grad():
        want = theirs(images(1), T, labels, return_dict=False)[0]
    torch.testing.assert_close(output(net), want, rtol=0, atol=1e-5 * float(want.abs().max()))
    theirs.save_pretrained(tmp_path / "again")
    again = UNet.from_diffusers(tmp_path / "again", null_class=net.label_embedding is not None)
    assert torch.equal(output(again), output(net))


def test_defaults_are_those_of_diffusers() -> None:
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
    theirs = {name: p.default for name, p in signature(diffusers.UNet2DModel.__init__).parameters.items() if name != "self"}
    assert {name: list(v) if isinstance(v, tuple) else v for name, v in theirs.items()} == DEFAULTS
