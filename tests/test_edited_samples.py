"""`fastdiff sample` from an image and into a part of one, and `fastdiff interpolate`."""

import numpy as np
import pytest
import torch
from PIL import Image
from test_sampling import arrays, new_model, sample

from fastdiff.cli import main
from fastdiff.training import save_checkpoint

pytestmark = pytest.mark.usefixtures("run")
IMAGE = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
MARKED = np.zeros((8, 8), np.uint8)
MARKED[:, 4:] = 255


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_checkpoint("runs/digits/checkpoints/last", model=new_model(10))
    return tmp_path / "runs" / "digits"


@pytest.fixture(autouse=True)
def pictures(run):
    Image.fromarray(IMAGE).save("image.png")
    Image.fromarray(MARKED).save("mask.png")
    Image.fromarray(np.zeros((6, 8), np.uint8)).save("small.png")


def test_inpainting_keeps_what_the_mask_leaves_black(run):
    sample("--num-samples", "5", "--inpaint", "image.png", "--mask", "mask.png")
    made = arrays(run / "samples")["x"][..., 0]
    np.testing.assert_allclose(made[:, :, :4], np.broadcast_to(IMAGE[:, :4] / 255, (5, 8, 4)), atol=1e-6)
    assert len({image.tobytes() for image in made[:, :, 4:]}) == 5
    shown = np.asarray(Image.open(run / "samples" / "samples.png"))
    assert shown.size > 5 * 64


def test_init_begins_from_the_picture(run):
    distances = []
    for strength in ("0.1", "1"):
        sample("--num-samples", "20", "--init", "image.png", "--strength", strength, "--precision", "fp32")
        distances.append(np.abs(arrays(run / "samples")["x"][..., 0] - IMAGE / 255).mean())
    assert distances[0] < distances[1]


def test_interpolation_ends_in_the_samples_of_its_seeds(run):
    how = ["--steps", "4", "--precision", "fp32"]
    assert main(["interpolate", "runs/digits", "--seeds", "3,8", "--num-images", "5", "--class", "7", *how]) == 0
    with np.load(run / "samples" / "interpolation.npz") as file:
        between, seeds = file["x"], file["seeds"]
    assert between.shape == (5, 8, 8, 1)
    assert seeds.tolist() == [3, 8]
    for seed, end in (("3", between[0]), ("8", between[4])):
        sample("--num-samples", "1", "--classes", "7", "--seed", seed, *how)
        np.testing.assert_allclose(arrays(run / "samples")["x"][0], end, atol=1e-4)
    assert Image.open(run / "samples" / "interpolation.png").width > 5 * 8


@pytest.mark.parametrize(
    ("words", "code", "parts"),
    [
        ("sample runs/digits --inpaint image.png", 2, ["--inpaint and --mask go together"]),
        ("sample runs/digits --inpaint image.png --init image.png --mask mask.png", 2, ["--init and --inpaint"]),
        ("sample runs/digits --strength 0.5", 2, ["--strength needs --init or --inpaint"]),
        ("sample runs/digits --init image.png --strength 0", 1, ["--strength must be above 0 and at most 1, got 0.0"]),
        ("sample runs/digits --init small.png", 1, ["small.png must have the model's 8x8 pixels, got 8x6"]),
        ("sample runs/digits --inpaint image.png --mask small.png", 1, ["small.png must have the model's 8x8 pixels"]),
        ("sample runs/digits --init absent.png", 1, ["absent.png: No such file"]),
        ("sample runs/digits --init runs/digits/checkpoints/last.json", 1, ["last.json"]),
        ("sample runs/digits --guidance-rescale 2", 1, ["--guidance-rescale must be in 0..1, got 2.0"]),
        ("interpolate runs/digits --seeds 3", 2, ["--seeds must be two numbers", "'3'"]),
        ("interpolate runs/digits --seeds a,b", 2, ["--seeds must be numbers"]),
        ("interpolate runs/digits --num-images 0", 1, ["--num-images must be at least 1, got 0"]),
        ("interpolate runs/digits --class 10", 1, ["--class must be in 0..9, got 10"]),
        ("interpolate", 2, ["give a run folder or a checkpoint"]),
    ],
)
def test_wrong_arguments_are_one_line(words, code, parts, capsys, run):
    assert main(words.split()) == code
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    for part in parts:
        assert part in said
    assert not (run / "samples").exists()


def test_colour_pictures_are_read_as_the_model_wants_them(tmp_path):
    from fastdiff.sampling import read_image

    Image.fromarray(np.full((8, 8, 3), (255, 0, 0), np.uint8)).save(tmp_path / "red.png")
    assert torch.equal(read_image(tmp_path / "red.png", (3, 8, 8))[0, :, 0, 0], torch.tensor([1.0, 0, 0]))
    assert read_image(tmp_path / "red.png", (1, 8, 8)).shape == (1, 1, 8, 8)
