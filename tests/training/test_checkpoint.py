import errno
import json
import os
import struct
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import fastdiff
from fastdiff.config import LoggingConfig
from fastdiff.training import Callback, Trainer, load_model, read_checkpoint, save_checkpoint
from fastdiff.training.callbacks import Checkpoints, Metrics, Validation
from fastdiff.training.checkpoint import find_checkpoint


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name, value in a.items():
        assert torch.equal(value, b[name]), name


@pytest.fixture
def saved(tmp_path, build):
    """(path, model, average): a checkpoint in a run folder, whose averaged weights are others."""
    model, average = build(seed=1), build(seed=2)
    return save_checkpoint(tmp_path / "run" / "checkpoints" / "last", model=model, ema=average), model, average


def test_round_trip_of_a_model_without_an_average(tmp_path, build):
    model = build(seed=3, norm="batch", dropout=0.25, num_classes=None, label_dropout=0.0)
    model.network(torch.randn(4, 1, 8, 8), torch.arange(4))  # moves the running statistics
    path = save_checkpoint(tmp_path / "model", model=model)
    assert path == tmp_path / "model.safetensors"
    again = load_model(path)
    assert_same(again.state_dict(), model.state_dict())
    assert again.config == model.config
    assert not again.training
    assert torch.equal(again.scheduler.betas, model.scheduler.betas)


def test_the_averaged_weights_are_the_ones_loaded(saved):
    path, model, average = saved
    loaded = load_model(path)
    assert_same(loaded.state_dict(), average.state_dict())
    assert not torch.equal(loaded.network.conv_in.weight, model.network.conv_in.weight)


def test_a_path_is_all_that_sampling_needs(saved):
    path, _, average = saved
    expected = average.generate(3, show_progress=False, labels=2, seed=5)
    run = path.parent.parent
    for spelling in (path, str(path), path.with_suffix(""), path.with_suffix(".json"), run, str(run)):
        images = fastdiff.load(spelling).generate(3, show_progress=False, labels=2, seed=5)
        assert images.shape == (3, 8, 8, 1)
        assert torch.equal(images, expected)


def test_names_with_dots(tmp_path, build):
    path = save_checkpoint(tmp_path / "net.v1", model=build())
    assert path.name == "net.v1.safetensors"
    assert find_checkpoint(tmp_path / "net.v1") == path


def test_the_json_says_what_the_header_says(saved, build, settings):
    path, model, average = saved
    optimizer = torch.optim.AdamW(model.parameters())
    save_checkpoint(path, model=model, ema=average, optimizer=optimizer, state={"step": 7})
    beside = json.loads(path.with_suffix(".json").read_text())
    assert beside == read_checkpoint(path).meta
    assert (beside["format"], beside["version"]) == ("fastdiff-checkpoint", 1)
    assert (beside["state"], beside["optimizer"]) == ({"step": 7}, "AdamW")
    assert beside["model"]["network"]["type"] == "UNet"


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def flip_a_byte(path):
    content = bytearray(path.read_bytes())
    content[-1000] ^= 1
    path.write_bytes(content)


def flip_a_byte_of_the_header(path):
    content = path.read_bytes()
    assert content.count(b'\\"label_dropout\\": 0.1') == 1
    path.write_bytes(content.replace(b'\\"label_dropout\\": 0.1', b'\\"label_dropout\\": 0.2'))


def make_foreign(path):
    save_file({"weight": torch.zeros(3)}, path)


def make_empty(path):
    path.write_bytes(b"")


def make_text(path):
    path.write_text("model: nice\n" * 50)


DAMAGES = {
    truncate: "is damaged or not a checkpoint of fastdiff",
    flip_a_byte: "is damaged: its checksum",
    flip_a_byte_of_the_header: "is damaged: its checksum",
    make_foreign: "is a safetensors file, but not a checkpoint of fastdiff",
    make_empty: "is damaged or not a checkpoint of fastdiff",
    make_text: "is damaged or not a checkpoint of fastdiff",
}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda f: f.__name__)
def test_damage_is_told_and_the_newest_good_one_offered(damage, saved, build):
    path, model, _ = saved
    damage(path)
    with pytest.raises(ValueError, match=DAMAGES[damage]) as alone:
        load_model(path)
    assert str(path) in str(alone.value)
    assert "newest good" not in str(alone.value)

    older, newer, broken = (save_checkpoint(path.with_name(n), model=model) for n in ("step-1", "step-2", "step-3"))
    for age, other in enumerate((broken, newer, older)):
        os.utime(other, (time.time() - age * 60,) * 2)
    truncate(broken)
    with pytest.raises(ValueError, match=DAMAGES[damage]) as hinted:
        load_model(path.parent.parent)
    assert str(hinted.value).endswith(f"the newest good checkpoint there is {newer}")


def test_no_byte_of_the_file_can_change_unseen(tmp_path, build):
    path = save_checkpoint(tmp_path / "model", model=build(num_classes=None, label_dropout=0.0))
    good = path.read_bytes()
    header = 8 + struct.unpack("<Q", good[:8])[0]
    for position in [*range(0, header, 61), *range(header, len(good), len(good) // 20)]:
        damaged = bytearray(good)
        damaged[position] ^= 4
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"model\.safetensors"):
            load_model(path)


def test_a_newer_format_says_to_upgrade(saved, monkeypatch, build):
    path, model, _ = saved
    with monkeypatch.context() as m:
        m.setattr("fastdiff.training.checkpoint.VERSION", 2)
        save_checkpoint(path, model=model)
    with pytest.raises(ValueError, match="has format version 2, this fastdiff reads up to 1: upgrade fastdiff"):
        load_model(path)


def test_what_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no checkpoint or run folder .*nowhere"):
        load_model(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"holds no checkpoints/last\.safetensors: it is not a run folder"):
        load_model(tmp_path)
    (tmp_path / "alone.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match=r"alone\.json"):
        load_model(tmp_path / "alone.json")


@pytest.mark.parametrize("fails", [(Path, "replace"), (os, "fsync")], ids=["rename", "flush"])
def test_an_interrupted_write_leaves_the_old_checkpoint(fails, saved, build, monkeypatch):
    path, _, average = saved
    before = {p.name: p.read_bytes() for p in path.parent.iterdir()}

    def no_space(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as m:
        m.setattr(*fails, no_space)
        with pytest.raises(OSError, match="No space left on device") as error:
            save_checkpoint(path, model=build(seed=9))
    assert error.value.filename == str(path)
    assert {p.name: p.read_bytes() for p in path.parent.iterdir()} == before, "and no partial file stays"
    assert_same(load_model(path).state_dict(), average.state_dict())


class StopAfter(Callback):
    """Ends the training as a crash would: no callback's end is called."""

    def __init__(self, step):
        self._step = step

    def step(self, trainer):
        if trainer.step == self._step:
            raise InterruptedError


@pytest.fixture
def run(tmp_path, data, build, settings):
    """Trains in tmp_path/NAME, from the checkpoint there with that name or from the start, to the end or a crash."""

    def run(name, network=None, resume=None, crash_after=None, **values):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        logging = LoggingConfig(checkpoint_every=3, keep_every=1, validate_every=4, log_every=1)
        metrics = Metrics(folder / "metrics.jsonl", 1)
        checkpoints = Checkpoints(folder, logging)
        validation = Validation(data.split(0.8, 0.2)[1], 4, metrics, folder)
        crash = [] if crash_after is None else [StopAfter(crash_after)]
        trainer = Trainer(settings(**{"steps": 12, **values}), [validation, metrics, checkpoints, *crash])
        torch.manual_seed(0 if resume is None else 12345)  # a new process has another random state
        model = build(seed=0 if resume is None else 54321, **(network or {}))
        checkpoint = None if resume is None else read_checkpoint(folder / resume)
        if crash_after is None:
            trainer.fit(model, data, checkpoint)
        else:
            with pytest.raises(InterruptedError):
                trainer.fit(model, data, checkpoint)
        return folder

    return run


def lines(folder):
    """The records of metrics.jsonl without what the clock says."""
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in r.items() if k not in ("images_per_s", "seconds")} for r in records]


VARIANTS = {
    "plain": ({}, {}),
    "dropout": ({"dropout": 0.3}, {}),
    "batch norm": ({"norm": "batch"}, {}),
    "accumulation": ({"dropout": 0.1}, {"accumulate": 3}),
    "channels_last": ({}, {"channels_last": True}),
    "bf16": ({}, {"precision": "bf16"}),
    "sgd": ({}, {"optimizer": "sgd"}),
    "adam": ({}, {"optimizer": "adam"}),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_resumed_equals_uninterrupted(variant, run):
    """An epoch has five batches: step 5 is its end, step 3 lies in the first, step 9 in the second."""
    network, values = VARIANTS[variant]
    whole = run("whole", network, **values)
    for crash_after, resume in ((3, "last"), (5, "step-5"), (10, "last")) if variant == "dropout" else ((4, "last"),):
        name = f"cut-{crash_after}"
        run(name, network, crash_after=crash_after, **values)
        cut = run(name, network, resume=resume, **values)
        expected, found = (read_checkpoint(folder / "last") for folder in (whole, cut))
        assert_same(found.tensors, expected.tensors)
        assert found.meta == expected.meta
        assert lines(cut) == lines(whole)
        assert_same(read_checkpoint(cut / "best").tensors, read_checkpoint(whole / "best").tensors)
    kinds = {key.split(".")[0] for key in expected.tensors}
    assert kinds == {"model", "ema", "optimizer", "rng"}


def test_dropout_needs_the_random_state(run, monkeypatch):
    """That the test above can fail: another random state gives other weights."""
    network = {"dropout": 0.3}
    whole = run("whole", network)
    run("cut", network, crash_after=6)
    monkeypatch.setattr("torch.set_rng_state", lambda state: None)
    cut = run("cut", network, resume="last")
    assert lines(cut)[:6] == lines(whole)[:6]
    assert lines(cut)[-1]["loss"] != lines(whole)[-1]["loss"]


def test_going_back_to_an_older_checkpoint_leaves_no_step_twice(run):
    folder = run("run")
    before = lines(folder)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 13, "lo')  # the machine stopped here
    run("run", resume="step-7")
    assert [r["step"] for r in lines(folder)] == list(range(1, 13))
    assert lines(folder) == before
    seconds = [json.loads(line)["seconds"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert seconds == sorted(seconds), "the clock goes on"


def test_the_best_checkpoint_is_of_the_lowest_validation_loss(run):
    folder = run("run", lr=3e-3)
    validated = {r["step"]: r["validation_loss"] for r in lines(folder) if "validation_loss" in r}
    assert list(validated) == [4, 8, 12]
    best = read_checkpoint(folder / "best").meta["state"]
    assert best["validation_loss"] == min(validated.values())
    assert validated[best["step"]] == best["validation_loss"]


def test_a_damaged_best_checkpoint_does_not_stop_a_resume(run):
    folder = run("run", crash_after=6)
    truncate(folder / "best.safetensors")
    run("run", resume="last")
    assert read_checkpoint(folder / "best").meta["state"]["step"] in (8, 12)


@pytest.mark.parametrize(
    ("network", "values", "message"),
    [
        ({}, {"batch_size": 16}, "was trained with batch_size = 32, this run has 16"),
        ({}, {"seed": 5}, "was trained with seed = 0, this run has 5"),
        ({"model_channels": 16}, {}, "was trained with model_channels = 8, this run has 16"),
        ({"dropout": 0.5}, {}, "was trained with dropout = 0.0, this run has 0.5"),
        ({"timesteps": 30}, {}, "was trained with timesteps = 20, this run has 30"),
        ({"label_dropout": 0.2}, {}, "was trained with label_dropout = 0.1, this run has 0.2"),
        ({}, {"optimizer": "sgd"}, "was trained with AdamW, this run has SGD"),
        ({}, {"steps": 2}, "has done 12 steps: training.steps must be at least that, got 2"),
    ],
)
def test_a_resume_with_other_settings_is_refused(network, values, message, run):
    folder = run("run")
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    with pytest.raises(ValueError, match=message):
        run("run", network, resume="last", **values)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


def test_an_older_checkpoint_lacks_settings_that_were_none_yet(run, monkeypatch):
    """They have their defaults: the run goes on with these, and with no others."""
    run("run", crash_after=6)
    own = read_checkpoint

    def older(path):
        checkpoint = own(path)
        del checkpoint.meta["model"]["loss"], checkpoint.meta["model"]["network"]["context_dim"]
        return checkpoint

    monkeypatch.setattr(sys.modules[__name__], "read_checkpoint", older)
    with pytest.raises(ValueError, match="was trained with context_dim = None, this run has 5"):
        run("run", {"context_dim": 5}, resume="last")
    folder = run("run", resume="last")
    assert own(folder / "last").meta["state"]["step"] == 12


def test_the_best_checkpoint_is_not_for_resuming(run):
    run("run")
    with pytest.raises(ValueError, match="holds no optimizer to go on with: resume from checkpoints/last or step-N"):
        run("run", resume="best")


def test_other_learning_settings_count_after_a_resume(run):
    folder = run("run", crash_after=6)
    run("run", resume="last", lr=2e-3, schedule="constant", weight_decay=0.0)
    assert [r["lr"] for r in lines(folder)[6:]] == [2e-3] * 6
