import errno
import gzip
import json
import os
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("jsonargparse", reason="the command line needs jsonargparse")

import torch
import yaml
from PIL import Image

import fastdiff
from fastdiff.cli import main
from fastdiff.config import load_config
from fastdiff.training import read_checkpoint

TINY = """
model: {model_channels: 8, channel_multipliers: [1], num_res_blocks: 1, attention_resolutions: [], time_embed_dim: 16}
diffusion: {timesteps: 20, sampling_steps: 3}
training: {steps: 6, batch_size: 32, device: cpu}
data: {name: digits}
logging: {num_samples: 10, log_every: 1, progress: false}
"""
FILES = {
    "checkpoints/last.safetensors",
    "checkpoints/last.json",
    "checkpoints/best.safetensors",
    "checkpoints/best.json",
    "config.yaml",
    "environment.json",
    "metrics.jsonl",
    "samples.png",
    "noising.png",
    "denoising.webp",
    "loss.png",
    "report.html",
    "figures.json",
}


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """Every test works in a folder of its own, with tiny.yaml."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FASTDIFF_DATA", raising=False)
    (tmp_path / "tiny.yaml").write_text(TINY)
    return tmp_path


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of six steps, made once; see `copied`."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as m:
        m.chdir(folder)
        Path("tiny.yaml").write_text(TINY)
        assert main(["train", "tiny.yaml", "--logging.keep_every", "2"]) == 0
    return folder / "runs" / "digits"


@pytest.fixture
def copied(finished, place):
    return shutil.copytree(finished, place / "runs" / "digits")


def files(folder):
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


def contents(folder):
    return {name: (folder / name).read_bytes() for name in files(folder)}


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def fails(words, code, capsys):
    """Runs a command that must fail; returns its one line on stderr."""
    assert main(words) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("fastdiff: ")
    assert err.count("\n") == 1
    return err


def strict(constant):
    raise AssertionError(f"{constant} is no JSON")


def test_a_run_leaves_what_the_contract_lists(finished):
    steps = {f"checkpoints/step-{n}.{kind}" for n in (2, 4, 6) for kind in ("safetensors", "json")}
    assert files(finished) == FILES | steps
    for name in ("samples.png", "noising.png", "loss.png"):
        Image.open(finished / name).verify()
    with Image.open(finished / "denoising.webp") as animation:
        assert animation.n_frames == 3
    for path in finished.rglob("*.json"):
        assert isinstance(json.loads(path.read_text(), parse_constant=strict), dict)
    lines = (finished / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line, parse_constant=strict) for line in lines]
    assert [r["step"] for r in records] == [1, 2, 3, 4, 5, 6]
    assert "validation_loss" in records[-1]
    assert "Final figures" in (finished / "report.html").read_text()


def test_config_yaml_and_environment_say_what_ran(finished, place):
    config = load_config(finished / "config.yaml")
    assert config == load_config("tiny.yaml", ["--logging.keep_every=2"])
    sections = yaml.safe_load((finished / "config.yaml").read_text())
    assert sections["training"]["optimizer"] == "adamw", "defaults are written too"
    environment = json.loads((finished / "environment.json").read_text())
    assert environment["fastdiff"] == fastdiff.__version__
    assert environment["torch"] == torch.__version__
    assert {"command", "git", "time", "processor", "kernels"} <= environment.keys()


def test_figures_are_printed_readably(copied, capsys):
    assert main(["train", "tiny.yaml"]) == 0
    out, err = capsys.readouterr()
    assert err == "", "--logging.progress false is quiet"
    figures = json.loads(Path("runs/digits-2/figures.json").read_text())
    for name, value in figures.items():
        assert f"  {name.replace('_', ' '):26}{value}\n" in out
    assert figures["steps"] == 6
    assert figures["loss"] == pytest.approx(np.mean([r["loss"] for r in metrics(copied)]), abs=1e-5)
    assert out.endswith("report.html\nmore samples: fastdiff sample runs/digits-2\n")


def test_judged_samples_and_interim_pictures(place):
    words = ["--logging.judge_samples", "20", "--logging.sample_every", "1", "--logging.validate_every", "0"]
    assert main(["train", "tiny.yaml", "--steps", "2", *words]) == 0
    run = place / "runs" / "digits"
    figures = json.loads((run / "figures.json").read_text(), parse_constant=strict)
    assert figures["samples_n"] == 20
    assert 0 <= figures["accuracy_samples"] <= 1
    assert {"samples/step-1.png", "samples/step-2.png"} <= files(run)
    assert "validation_loss" not in figures
    assert not (run / "checkpoints" / "best.safetensors").exists()


def test_one_step_and_a_metrics_line_at_the_end(place):
    assert main(["train", "tiny.yaml", "--steps=1", "--logging.log_every=100", "--diffusion.timesteps=3"]) == 0
    assert [r["step"] for r in metrics(place / "runs" / "digits")] == [1]


def test_a_run_is_never_overwritten(copied, place):
    before = contents(copied)
    for name in ("digits-2", "digits-3"):
        assert main(["train", "tiny.yaml", "--steps", "1"]) == 0
        assert (place / "runs" / name / "report.html").exists()
    assert contents(copied) == before


@pytest.mark.parametrize("option", ["--run-dir", "--run_dir", "--output_dir", "--logging.run_dir"])
def test_run_dir(option, place):
    (place / "deep").mkdir()  # a folder without a run may be there already
    for name in ("deep", "deep-2"):
        assert main(["train", "tiny.yaml", "--steps", "1", option, "deep"]) == 0
        assert (place / name / "report.html").exists()
    assert not (place / "runs").exists()


def test_aliases_and_options_before_the_config(place):
    words = ["--steps", "1", "--batch_size=16", "--learning-rate", "0.5", "--seed", "4", "tiny.yaml", "--num_samples", "3"]
    assert main(["train", *words]) == 0
    config = load_config("runs/digits/config.yaml")
    assert (config.training.steps, config.training.batch_size, config.training.lr) == (1, 16, 0.5)
    assert (config.training.seed, config.logging.num_samples) == (4, 3)


def test_the_progress_bar_goes_to_stderr(capsys):
    assert main(["train", "tiny.yaml", "--steps", "2", "--logging.progress", "true"]) == 0
    out, err = capsys.readouterr()
    assert "training: 100%" in err
    assert "images/s" in err
    assert "training:" not in out


def test_load_takes_the_run(copied):
    images = fastdiff.load(copied).generate(2, show_progress=False, steps=2)
    assert images.shape == (2, 8, 8, 1)


@pytest.mark.parametrize("words", [["--resume"], ["tiny.yaml", "--resume"], ["--resume", "runs/digits"]])
def test_resume_of_a_finished_run_says_so(words, copied, capsys):
    before = contents(copied)
    assert main(["train", *words]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("this run was finished already, after step 6; to go on, give a larger --steps\n")
    assert "validation loss" in out
    assert err == ""
    assert contents(copied) == before


def test_a_finished_run_goes_on_with_more_steps(copied, place):
    assert main(["train", "tiny.yaml", "--steps", "9", "--training.schedule", "constant", "--run-dir", "whole"]) == 0
    cut = ["tiny.yaml", "--training.schedule", "constant", "--run-dir", "cut"]
    assert main(["train", *cut]) == 0
    assert main(["train", "--resume", "cut", "--steps", "9"]) == 0
    whole, cut = (read_checkpoint(place / name) for name in ("whole", "cut"))
    assert whole.meta == cut.meta
    assert all(torch.equal(whole.tensors[name], cut.tensors[name]) for name in whole.tensors)
    assert [r["step"] for r in metrics(place / "cut")] == list(range(1, 10))
    assert load_config("cut/config.yaml").training.steps == 9, "so that the next resume knows"
    assert json.loads((place / "cut" / "figures.json").read_text())["steps"] == 9


def test_a_run_that_stopped_before_its_pictures_gets_them(copied):
    (copied / "figures.json").unlink()
    (copied / "samples.png").unlink()
    before = read_checkpoint(copied)
    assert main(["train", "--resume"]) == 0
    assert files(copied) >= FILES
    assert read_checkpoint(copied).meta == before.meta
    assert "validation_loss" in json.loads((copied / "figures.json").read_text(), parse_constant=strict)


def test_resume_takes_the_newest_run_of_the_name(copied, place, capsys):
    for number, name in enumerate(("digits-2", "digitsx", "digits-old")):
        other = shutil.copytree(copied, place / "runs" / name)
        os.utime(other / "checkpoints" / "last.safetensors", (time.time() + 100 * (number + 1),) * 2)
    for words, name in ((["--resume"], "digits-old"), (["tiny.yaml", "--resume"], "digits-2")):
        assert main(["train", *words]) == 0
        assert f"runs/{name}/report.html" in capsys.readouterr().out


def test_resume_looks_into_the_run_dir_that_is_given(copied, place, capsys):
    shutil.copytree(copied, place / "other" / "mine-2")
    assert main(["train", "--run-dir", "other/mine", "--resume"]) == 0
    assert "other/mine-2/report.html" in capsys.readouterr().out
    assert "no run elsewhere/mine" in fails(["train", "--resume", "--run-dir", "elsewhere/mine"], 1, capsys)


def test_resume_from_an_older_checkpoint(copied):
    before = read_checkpoint(copied)
    lines = [(r["step"], r["loss"]) for r in metrics(copied)]
    assert main(["train", "--resume", "runs/digits/checkpoints/step-2"]) == 0
    after = read_checkpoint(copied)
    assert after.meta == before.meta
    assert [(r["step"], r["loss"]) for r in metrics(copied)] == lines


RESUMES = {
    "--resume runs/none": (1, "there is no checkpoint or run folder runs/none"),
    "--resume .": (2, "is not a run folder, it has no config.yaml"),
    "mnist --resume": (1, "there is no run runs/mnist with a checkpoint to resume"),
    "--resume runs/digits --steps 3": (1, "has done 6 steps: training.steps must be at least that, got 3"),
    "--resume runs/digits --steps 9 --batch-size 16": (1, "was trained with batch_size = 32, this run has 16"),
    "--resume runs/digits --steps 9 --model.dropout 0.5": (1, "was trained with dropout = 0.0, this run has 0.5"),
    "--resume runs/digits --steps x": (2, "training.steps must be int, got x"),
    "--resume runs/digits/checkpoints/best --steps 9": (1, "holds no optimizer"),
}


@pytest.mark.parametrize("words", RESUMES)
def test_a_resume_that_cannot_be_changes_nothing(words, copied, capsys):
    before = contents(copied)
    code, message = RESUMES[words]
    assert message in fails(["train", *words.split()], code, capsys)
    assert contents(copied) == before


def test_a_damaged_last_checkpoint_names_a_good_one_that_works(copied, capsys):
    last = copied / "checkpoints" / "last.safetensors"
    last.write_bytes(last.read_bytes()[:1000])
    os.utime(copied / "checkpoints" / "step-4.safetensors", (time.time() + 100,) * 2)
    error = fails(["train", "--resume", "runs/digits"], 1, capsys)
    assert "last.safetensors is damaged" in error
    assert main(["train", "--resume", error.split()[-1]]) == 0
    assert read_checkpoint(copied).meta["state"]["step"] == 6


def test_there_is_no_run_to_resume(capsys):
    assert "there is no run runs/* with a checkpoint to resume" in fails(["train", "--resume"], 1, capsys)


WRONG = {
    "": "COMMAND is missing: train, sample, interpolate, doctor",
    "trian tiny.yaml": "there is no command 'trian': did you mean train?",
    "fly": "there is no command 'fly': one of train, sample, interpolate, doctor",
    "--fly": "--fly",
    "train": "CONFIG is missing",
    "train digts": "there is no config 'digts': did you mean digits?",
    "train gone.yaml": "config file gone.yaml does not exist",
    "train tiny.yaml --stepz 5": "did you mean --training.steps?",
    "train tiny.yaml --training.learning_rate 5": "--training.learning_rate",
    "train tiny.yaml --training.lr -1": "training.lr must be above 0",
    "train tiny.yaml --data.download --training.steps 5": "--data.download: expected one argument",
    "train tiny.yaml extra": "extra",
    "train digts --help": "did you mean digits?",
    "sample": "give a run folder or a checkpoint, once",
    "doctor --fly": "--fly",
}


@pytest.mark.parametrize("words", WRONG)
def test_wrong_arguments(words, place, capsys):
    assert WRONG[words] in fails(words.split(), 2, capsys)
    assert [p.name for p in place.iterdir()] == ["tiny.yaml"]


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ("--help", ["train", "sample", "doctor"]),
        (
            "train --help",
            ["--resume", "--training.lr", "Peak learning rate", "default: 0.001", "Steps between", "--learning-rate"],
        ),
        ("train digits --help", ["--training.steps", "default: 2000"]),
        ("sample --help", ["--num-samples", "default: 64", "sampling steps, 1..T", "classifier-free guidance scale"]),
        ("doctor --help", ["check each op"]),
        ("--version", [fastdiff.__version__]),
    ],
)
def test_help(words, parts, capsys):
    assert main(words.split()) == 0
    out, err = capsys.readouterr()
    for part in parts:
        assert part in " ".join(out.split())
    assert err == ""


FAILS = {
    "--data.name mnist": "mnist: no folder to look in",
    "--data.name mnist --data.root empty": "no file train-images-idx3-ubyte[.gz]",
    "--device cuda:99": "device must be auto, cpu, cuda or cuda:N, got 'cuda:99'",
    "--model.channel_multipliers [1,1,1,1,1]": "x is too small",
    "--run-dir tiny.yaml/below": "tiny.yaml/below: cannot create the run folder (Not a directory)",
    "--run-dir tiny.yaml": "tiny.yaml: cannot create the run folder",
}


@pytest.mark.parametrize("words", FAILS)
def test_failures_are_one_line(words, place, capsys):
    (place / "empty").mkdir()
    assert FAILS[words] in fails(["train", "tiny.yaml", *words.split()], 1, capsys)
    if "multipliers" not in words:
        assert not (place / "runs").exists()


def test_a_truncated_data_file(place, capsys):
    (place / "mnist").mkdir()
    images = struct.pack(">4I", 0x803, 60, 4, 3) + bytes(60 * 12)
    for content, message in ((gzip.compress(images)[:-9], "corrupt gzip"), (images[:-9], "truncated IDX file")):
        (place / "mnist" / "train-images-idx3-ubyte").write_bytes(content)
        (place / "mnist" / "train-labels-idx1-ubyte").write_bytes(struct.pack(">2I", 0x801, 60) + bytes(60))
        error = fails(["train", "tiny.yaml", "--data.name", "mnist", "--data.root", "."], 1, capsys)
        assert message in error
        assert "train-images-idx3-ubyte" in error
    assert not (place / "runs").exists()


def test_a_loss_that_explodes_keeps_the_last_good_checkpoint(copied, capsys):
    before = (copied / "checkpoints" / "last.safetensors").read_bytes()
    words = ["--resume", "runs/digits", "--steps", "30", "--lr", "1e30"]
    error = fails(["train", *words], 1, capsys)
    assert "in step 8 (epoch 0, batch 7" in error
    assert "lower training.lr" in error
    assert (copied / "checkpoints" / "last.safetensors").read_bytes() == before
    assert read_checkpoint(copied).meta["state"]["step"] == 6


def test_validation_finds_exploded_weights_before_they_are_saved(copied, capsys):
    words = ["--resume", "runs/digits", "--steps", "30", "--lr", "1e30"]
    every = ["--logging.validate_every", "1", "--logging.checkpoint_every", "1"]
    assert "validation loss nan after step 7: lower training.lr" in fails(["train", *words, *every], 1, capsys)
    assert read_checkpoint(copied).meta["state"]["step"] == 6
    assert [r["step"] for r in metrics(copied)] == [1, 2, 3, 4, 5, 6]


def test_a_full_disk_leaves_the_run_readable(copied, capsys, monkeypatch):
    whole = os.fsync

    def full(descriptor):
        if "last.safetensors" in os.readlink(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        whole(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    error = fails(["train", "--resume", "runs/digits", "--steps", "9"], 1, capsys)
    assert "runs/digits/checkpoints/last.safetensors: cannot write the file (No space left on device)" in error
    monkeypatch.undo()
    assert read_checkpoint(copied).meta["state"]["step"] == 6
    assert not [name for name in files(copied) if name.endswith(".partial")]
    assert main(["train", "--resume", str(copied)]) == 0
    assert read_checkpoint(copied).meta["state"]["step"] == 9


def test_folders_with_spaces_are_quoted(capsys):
    assert main(["train", "tiny.yaml", "--steps", "1", "--run-dir", "my runs"]) == 0
    assert "fastdiff sample 'my runs'" in capsys.readouterr().out


def test_a_reader_that_leaves_is_no_error():
    command = f"{shlex.quote(sys.executable)} -m fastdiff train --help | head -n 1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert done.stdout.startswith("usage: fastdiff train")
    assert done.stderr == ""


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    (folder / "tiny.yaml").write_text(TINY)
    with pytest.MonkeyPatch.context() as m:
        m.chdir(folder)
        assert main(["train", "tiny.yaml", "--steps", "100"]) == 0
    return read_checkpoint(folder / "runs" / "digits"), metrics(folder / "runs" / "digits")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_run_that_can_go_on(number, code, place, uninterrupted):
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    command = [sys.executable, "-m", "fastdiff", "train", "tiny.yaml", "--steps", "100"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    lines = place / "runs" / "digits" / "metrics.jsonl"
    with subprocess.Popen(command, env=environment, **pipes) as process:
        deadline = time.monotonic() + 120
        while process.poll() is None and not (lines.exists() and lines.read_text().count("\n") >= 5):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (code, "")
    step = read_checkpoint("runs/digits").meta["state"]["step"]
    assert 5 <= step < 100
    told, _, resume = out.strip().partition("; go on with: fastdiff ")
    assert told == f"stopped by {number.name} after step {step}"

    assert main(shlex.split(resume)) == 0
    expected, records = uninterrupted
    found = read_checkpoint("runs/digits")
    assert found.meta == expected.meta
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in expected.tensors.items())
    assert [r["loss"] for r in metrics(place / "runs" / "digits")] == [r["loss"] for r in records]
    assert files(place / "runs" / "digits") == FILES


def test_interrupted_before_the_first_step(place, capsys, monkeypatch):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("fastdiff.training.run.load_dataset", interrupt)
    assert fails(["train", "tiny.yaml"], 130, capsys) == "fastdiff: interrupted\n"
    assert not (place / "runs").exists()
