import numpy as np
import pytest
import torch
from PIL import Image

from fastdiff.cli import main
from fastdiff.diffusion import SAMPLERS, DiffusionModel, NoiseScheduler
from fastdiff.models import UNet
from fastdiff.sampling import sample_to_folder
from fastdiff.training import save_checkpoint

SMALL = {"model_channels": 8, "time_embed_dim": 16, "channel_multipliers": (1,), "num_res_blocks": 1}


def new_model(num_classes):
    torch.manual_seed(0)
    network = UNet(**SMALL, attention_resolutions=(), num_classes=num_classes)
    for parameter in network.parameters():  # the last layer starts at zero: every sample would be alike
        torch.nn.init.normal_(parameter, std=0.2)
    return DiffusionModel(network=network, scheduler=NoiseScheduler(30, schedule_type="cosine"), img_shape=(8, 8, 1))


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run folder with classes, as it lies under the working directory."""
    monkeypatch.chdir(tmp_path)
    save_checkpoint("runs/digits/checkpoints/last", model=new_model(10))
    return tmp_path / "runs" / "digits"


def sample(*words):
    assert main(["sample", "runs/digits", "--steps", "4", *words]) == 0


def arrays(folder):
    with np.load(folder / "samples.npz") as file:
        return {name: file[name] for name in file.files}


def test_what_it_writes(run, capsys):
    sample("--num-samples", "12", "--seed", "9")
    found = arrays(run / "samples")
    assert set(found) == {"x", "y", "seed"}
    assert found["x"].shape == (12, 8, 8, 1)
    assert found["x"].dtype == np.float32
    assert 0 <= found["x"].min() < found["x"].max() <= 1
    assert found["y"].dtype == np.int64
    assert found["y"].tolist() == [i % 10 for i in range(12)]
    assert found["seed"] == 9
    assert sorted(p.name for p in (run / "samples").iterdir()) == ["samples.npz", "samples.png"]
    assert capsys.readouterr().out == "12 samples: runs/digits/samples/samples.png, runs/digits/samples/samples.npz\n"


def test_classes_in_turn(run):
    sample("--num-samples", "7", "--classes", "3,1,3")
    found = arrays(run / "samples")
    assert found["y"].tolist() == [3, 1, 3, 3, 1, 3, 3]
    sample("--num-samples", "7", "--classes", "5", "--out", "five")
    assert arrays(run.parent.parent / "five")["y"].tolist() == [5] * 7
    assert not np.array_equal(arrays(run.parent.parent / "five")["x"], found["x"]), "the class counts"


def test_single_pictures_and_out(run, tmp_path):
    for option, folder in (("--out", "a/b"), ("--output_dir", "c"), ("--output-dir", "d e")):
        sample("--num_samples", "3", "--png", option, folder)
        names = [f"image-0000{i}.png" for i in range(3)] + ["samples.npz", "samples.png"]
        assert sorted(p.name for p in (tmp_path / folder).iterdir()) == names
    pixels = np.asarray(Image.open(tmp_path / "c" / "image-00001.png"))
    assert pixels.shape == (8, 8)
    np.testing.assert_allclose(pixels / 255, arrays(tmp_path / "c")["x"][1, :, :, 0], atol=0.5 / 255 + 1e-6)
    assert not (run / "samples").exists()


def test_every_way_to_name_the_checkpoint(run):
    spellings = (
        ["runs/digits"],
        ["runs/digits/checkpoints/last"],
        ["runs/digits/checkpoints/last.safetensors"],
        ["--checkpoint", "runs/digits/checkpoints/last.json"],
        ["--checkpoint=runs/digits"],
    )
    for words in spellings:
        assert main(["sample", *words, "--steps", "1", "--num-samples", "1"]) == 0
        (run / "samples" / "samples.npz").unlink()


def test_a_checkpoint_outside_a_run_folder(run, tmp_path):
    (run / "checkpoints" / "last.safetensors").rename(tmp_path / "mine.safetensors")
    assert main(["sample", "mine", "--steps", "1", "--num-samples", "1"]) == 0
    assert (tmp_path / "samples" / "samples.npz").exists()


def test_the_same_seed_gives_the_same_file(run, tmp_path):
    for name, seed in (("one", "1"), ("again", "1"), ("other", "2")):
        sample("--num-samples", "4", "--sampler", "ddpm", "--seed", seed, "--out", name)
    one, again, other = (tmp_path / name / "samples.npz" for name in ("one", "again", "other"))
    assert one.read_bytes() == again.read_bytes()
    assert not np.array_equal(arrays(one.parent)["x"], arrays(other.parent)["x"])


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_the_noise_does_not_depend_on_the_batch(sampler, run, tmp_path):
    for size in ("1", "3", "64"):
        sample("--num-samples", "7", "--sampler", sampler, "--batch_size", size, "--out", size)
    whole = arrays(tmp_path / "64")["x"]
    for size in ("1", "3"):
        np.testing.assert_allclose(arrays(tmp_path / size)["x"], whole, atol=1e-4)
    assert np.abs(whole[0] - whole[1]).max() > 0.1, "each image has noise of its own"


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler(sampler, run, tmp_path, capsys):
    sample("--num-samples", "3", "--sampler", sampler, "--out", "whole")
    found = arrays(tmp_path / "whole")["x"]
    assert np.isfinite(found).all()
    assert found.std() > 0.01
    main(["sample", "--help"])
    assert sampler in capsys.readouterr().out


def test_options_of_samplers(run, tmp_path):
    found = {}
    for words in (
        "--sampler ddim",
        "--sampler ddim --eta 0.3",  # with 1 it would be ddpm
        "--sampler ddim --spacing leading",
        "--sampler ddim --threshold 0.8",
        "--sampler ddpm",
        "--sampler ddpm --variance fixed_large",
        "--sampler heun",
        "--sampler heun --spacing linspace",
        "--sampler euler --churn 2",
        "--sampler euler_ancestral --eta 0.5",
    ):
        sample("--num-samples", "2", "--out", "x", *words.split())
        found[words] = float(np.square(arrays(tmp_path / "x")["x"], dtype=np.float64).sum())
    assert len(set(found.values())) == len(found), found
    for words, spacing in (("--sampler heun", "karras"), ("--sampler ddpm", "trailing")):
        sample("--num-samples", "2", "--out", "x", *words.split(), "--spacing", spacing)
        assert found[words] == float(np.square(arrays(tmp_path / "x")["x"], dtype=np.float64).sum()), "by default"


def test_fewer_samples_are_the_first_of_more(run, tmp_path):
    for count in ("3", "6"):
        sample("--num-samples", count, "--out", count)
    np.testing.assert_allclose(arrays(tmp_path / "3")["x"], arrays(tmp_path / "6")["x"][:3], atol=1e-4)


def test_steps_are_capped_by_a_short_schedule(run):
    assert main(["sample", "runs/digits", "--num-samples", "1"]) == 0  # T is 30, the default is 50


def test_a_model_without_classes(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save_checkpoint("plain", model=new_model(None))
    assert main(["sample", "plain", "--steps", "2", "--num-samples", "2"]) == 0
    assert arrays(tmp_path / "samples")["y"].shape == (0,)
    assert main(["sample", "plain", "--classes", "1"]) == 1
    assert "--classes: this model was trained without classes" in capsys.readouterr().err


WRONG = {
    "--classes 1,11": (1, "--classes must be in 0..9, got 11"),
    "--classes=-1": (1, "--classes must be in 0..9, got -1"),
    "--classes 1,b": (2, "--classes must be numbers with commas between them, got '1,b'"),
    "--classes ''": (2, "--classes must be numbers with commas between them, got \"''\""),
    "--steps 0": (1, "--steps must be in 1..30, got 0"),
    "--steps 31": (1, "--steps must be in 1..30, got 31"),
    "--steps x": (2, "argument --steps: invalid int value: 'x'"),
    "--sampler dimm": (1, "--sampler must be one of"),
    "--eta 0.5 --sampler ddpm": (1, "--eta is an option of ddim, euler_ancestral, not of --sampler ddpm"),
    "--variance fixed_large": (1, "--variance is an option of ddpm, not of --sampler ddim"),
    "--churn 1": (1, "--churn is an option of euler, heun, not of --sampler ddim"),
    "--churn -1 --sampler heun": (1, "churn must be at least 0 and finite, got -1.0"),
    "--eta 2": (1, "eta must be in 0..1, got 2.0"),
    "--threshold 2": (1, "--threshold must be above 0 and at most 1, got 2.0"),
    "--spacing even": (2, "argument --spacing: invalid choice: 'even' (choose from"),
    "--num-samples 0": (1, "--num-samples must be at least 1, got 0"),
    "--batch-size 0": (1, "--batch-size must be at least 1, got 0"),
    "--guidance -1": (1, "--guidance must be at least 0 and finite, got -1.0"),
    "--guidance nan": (1, "--guidance must be at least 0 and finite, got nan"),
    "--seed -1": (1, "--seed must be in 0..2^63-1, got -1"),
    "--seed 9223372036854775808": (1, "--seed must be in 0..2^63-1"),
    "--device cuda:99": (1, "device must be auto, cpu, cuda or cuda:N, got 'cuda:99'"),
    "--device tpu0": (1, "device must be auto, cpu, cuda or cuda:N, got 'tpu0'"),
    "--checkpoint runs/digits": (2, "give a run folder or a checkpoint, once"),
    "--out runs/digits/checkpoints/last.json": (1, "last.json"),
    "--sede 1": (2, "--sede"),
}


@pytest.mark.parametrize("words", WRONG)
def test_wrong_arguments_are_one_line_and_write_nothing(words, run, tmp_path, capsys):
    before = sorted(tmp_path.rglob("*"))
    code, message = WRONG[words]
    assert main(["sample", "runs/digits", "--num-samples", "2", *words.split()]) == code
    out, err = capsys.readouterr()
    assert message in err
    assert out == ""
    assert sum(line.startswith("fastdiff: ") for line in err.splitlines()) == 1
    assert "Traceback" not in err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("path", ["nowhere", "runs", "runs/digits/checkpoints/text"])
def test_a_path_that_is_no_checkpoint(path, run, capsys):
    (run / "checkpoints" / "text").write_text("not a checkpoint")
    assert main(["sample", path]) == 1
    assert path in capsys.readouterr().err
    assert not (run / "samples").exists()


def test_no_classes_at_all_from_python(run):
    with pytest.raises(ValueError, match="--classes must name at least one class"):
        sample_to_folder(run, classes=[])
