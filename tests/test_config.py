import dataclasses
import typing

import pytest

pytest.importorskip("jsonargparse", reason="configs are read by jsonargparse")

import yaml

from fastdiff import config
from fastdiff.config import Config, DiffusionConfig, build_model, build_scheduler, load_config, to_dict
from fastdiff.diffusion import SAMPLERS
from fastdiff.diffusion.levels import SPACINGS
from fastdiff.diffusion.loss import LOSSES, WEIGHTINGS
from fastdiff.diffusion.prediction import PREDICTIONS
from fastdiff.diffusion.schedule import SCHEDULES

SHIPPED = sorted(p.stem for p in config.parser.CONFIGS.glob("*.yaml"))


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_configs_load_and_build(name):
    loaded = load_config(name)
    assert loaded.data.name == name
    size = {"digits": 8, "mnist": 28}[name]
    model = build_model(loaded, (size, size, 1), 10)
    assert model.image_shape == (1, size, size)
    assert model.num_classes == 10
    assert model.timesteps == loaded.diffusion.timesteps


def test_digits_and_mnist_are_among_them():
    assert {"digits", "mnist"} <= set(SHIPPED)


def test_command_line_over_yaml_over_defaults(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("training: {steps: 7, lr: 2e-4}\nmodel: {channel_multipliers: [1, 3]}\n")
    loaded = load_config(file, ["--training.lr", "5e-5", "--data.root=/data"])
    assert loaded.training.steps == 7
    assert loaded.training.lr == 5e-5
    assert loaded.training.batch_size == Config().training.batch_size
    assert loaded.model.channel_multipliers == (1, 3)
    assert loaded.data.root == "/data"
    assert load_config() == Config()


def test_values_keep_their_types(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("training: {lr: 1e-4}\ndata: {root: '5'}\n")  # plain YAML takes 1e-4 for a string
    loaded = load_config(file, ["--logging.run_dir", "007", "--model.groups", "null", "--logging.progress", "false"])
    assert loaded.training.lr == 1e-4
    assert loaded.data.root == "5"
    assert loaded.logging.run_dir == "007"
    assert loaded.model.groups is None
    assert loaded.logging.progress is False


def test_what_is_written_reads_back(tmp_path):
    changed = load_config("digits", ["--training.lr", "1e-5", "--model.attention_resolutions", "[]", "--data.root", "a b"])
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(to_dict(changed)))
    assert load_config(file) == changed


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("trainin: {steps: 5}", "'trainin.steps' is not accepted; did you mean training.steps?"),
        ("training: {stepz: 5}", "'training.stepz' is not accepted; did you mean training.steps?"),
        ("trainin: {learning_rat: 5}", "'trainin.learning_rat' is not accepted"),
        ("foo: 1", "'foo' is not accepted"),
        ("training: {optimizer: adamx}", "training.optimizer must be one of 'adamw', 'adam', 'sgd', got adamx; did you"),
        ("training: {steps: abc}", "training.steps must be int, got abc"),
        ("training: {steps: 1.5}", "training.steps must be int, got 1.5"),
        ("training: 3", "training must be a section of keys and values, got 3"),
        ("model: {channel_multipliers: 2}", "model.channel_multipliers must be a list such as"),
        ("data: {download: maybe}", "data.download must be bool, got maybe"),
        ("[1, 2", "parsing"),
        ("- 1", "Unexpected config"),
    ],
)
def test_a_wrong_file_is_named_with_what_is_wrong_in_it(text, message, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(ValueError) as error:
        load_config(file, ["--training.seed", "1"])
    assert str(error.value).startswith(f"{file}: ")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--training.stepz", "5"], "did you mean --training.steps?"),
        (["--trainin.steps", "5"], "did you mean --training.steps?"),
        (["--training.st", "5"], "did you mean --training.steps?"),
        (["--stepz=5"], "did you mean --training.steps?"),
        (["--training.batch-size", "5"], "did you mean --training.batch_size?"),
        (["--data.name", "mnits"], "data.name must be one of 'digits', 'mnist', got mnits; did you mean mnist?"),
        (["--training.steps"], "--training.steps: expected one argument"),
        (["--training.steps", "many"], "training.steps must be int, got many"),
        (["stray"], "stray"),
    ],
)
def test_wrong_words_name_the_nearest(words, message):
    with pytest.raises(ValueError) as error:
        load_config("digits", words)
    assert message in str(error.value)


RANGES = {
    "model.model_channels": 0,
    "model.num_res_blocks": 0,
    "model.channel_multipliers": "[]",
    "model.attention_resolutions": "[3]",
    "model.groups": 0,
    "model.head_dim": 0,
    "model.time_embed_dim": 7,
    "model.dropout": 1,
    "diffusion.timesteps": 0,
    "diffusion.beta_start": 0.5,
    "diffusion.beta_end": 1,
    "diffusion.label_dropout": 1,
    "diffusion.sampling_steps": 1001,
    "diffusion.guidance": -1,
    "training.steps": 0,
    "training.batch_size": 0,
    "training.accumulate": 65,
    "training.lr": 0,
    "training.weight_decay": -1,
    "training.warmup_steps": -1,
    "training.clip_norm": -1,
    "training.ema_decay": 1,
    "training.seed": 2**63,
    "logging.log_every": 0,
    "logging.checkpoint_every": 0,
    "logging.num_samples": 0,
    "logging.validate_every": -1,
    "logging.keep_every": -1,
    "logging.sample_every": -1,
    "logging.judge_samples": 1,
}


@pytest.mark.parametrize("key", RANGES)
def test_ranges(key):
    with pytest.raises(ValueError, match=f"{key} must be "):
        load_config("digits", [f"--{key}={RANGES[key]}"])


def test_every_number_has_a_range():
    """A new setting without a check shows up here."""
    numbers = {
        f"{section.name}.{value.name}"
        for section in dataclasses.fields(Config)
        for value in dataclasses.fields(section.default_factory)
        if value.type.split(" ")[0] in ("int", "float", "tuple[int,")
    }
    assert numbers == set(RANGES)


def test_names_of_configs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"there is no config 'digit': did you mean digits\?"):
        load_config("digit")
    with pytest.raises(ValueError, match=r"one of digits, mnist, or a \.yaml file"):
        load_config("xyz")
    with pytest.raises(ValueError, match=r"config file gone\.yaml does not exist"):
        load_config("gone.yaml")


def test_the_model_is_what_the_config_says():
    words = ["--model.dropout=0.25", "--model.norm=batch", "--model.conditioning=add", "--model.head_dim=4"]
    model = build_model(load_config("digits", [*words, "--diffusion.prediction=v"]), (8, 8, 3), 10)
    network = model.config["network"]
    assert (network["dropout"], network["norm"], network["conditioning"]) == (0.25, "batch", "add")
    assert (network["in_channels"], network["head_dim"], network["model_channels"]) == (3, 4, 32)
    assert model.prediction == "v"
    assert model.label_dropout == 0.1

    free = build_model(load_config("digits", ["--model.class_conditional=false"]), (8, 8, 1), 10)
    assert free.num_classes is None
    assert free.label_dropout == 0.0
    simple = build_model(load_config("digits", ["--model.network=SimpleUNet"]), (8, 8, 1), 10)
    assert simple.config["network"]["type"] == "SimpleUNet"
    assert simple.config["network"]["base_channels"] == 32


def test_the_schedule_is_what_the_config_says():
    scheduler = build_scheduler(DiffusionConfig(timesteps=200, schedule_type="linear", sampling_steps=10))
    assert scheduler.timesteps == 200
    # stated for T = 1000: a schedule of a fifth of the steps has five times the betas
    assert scheduler.betas[0].item() == pytest.approx(5e-4)
    assert scheduler.betas[-1].item() == pytest.approx(0.1)


def test_choices_are_those_of_the_library():
    hints = typing.get_type_hints(DiffusionConfig)
    for name, known in [
        ("schedule_type", SCHEDULES),
        ("prediction", PREDICTIONS),
        ("loss", LOSSES),
        ("loss_weighting", WEIGHTINGS),
        ("sampler", SAMPLERS),
    ]:
        assert typing.get_args(hints[name]) == tuple(known), name
    assert typing.get_args(typing.get_args(hints["spacing"])[0]) == SPACINGS


def test_diffusion_is_what_the_config_says():
    words = ["--diffusion.prediction=v", "--diffusion.zero_terminal_snr=true", "--diffusion.loss=huber"]
    model = build_model(load_config("digits", [*words, "--diffusion.loss_weighting=p2"]), (8, 8, 1))
    assert (model.loss, model.loss_weighting) == ("huber", "p2")
    assert model.scheduler.alphas_cumprod[-1] == 0
    with pytest.raises(ValueError, match=r"diffusion\.prediction must be v, x0 or edm with diffusion\.zero_terminal_snr"):
        load_config("digits", ["--diffusion.zero_terminal_snr=true"])
