"""The main job: a run folder, training, and what it leaves behind: pictures, figures, report."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from ..config import Config, build_model
from ..data import ImageDataset, load_dataset
from ..diffusion import DiffusionModel
from ..visualization import (
    plot_loss,
    save_animation,
    save_images,
    visualize_diffusion_process,
    write_report,
)
from ..visualization.files import write_atomically
from .callbacks import (
    Callback,
    Checkpoints,
    Metrics,
    Progress,
    SamplePictures,
    Validation,
    draw_samples,
    sample_columns,
)
from .checkpoint import Checkpoint, read_checkpoint
from .run_folder import create_run_folder, run_folder_of, write_config
from .trainer import Trainer

NOISED_SHOWN = 8  # timesteps in noising.png
FRAMES = 40  # of denoising.webp
NEAREST_SHOWN = 8  # samples in nearest.png


@dataclass(frozen=True)
class RunResult:
    """Where the run is, its final figures, and the signal that stopped it early (None: it ended by itself).

    was_finished: there was nothing left to do.
    """

    folder: Path
    figures: dict
    stopped_by: str | None
    step: int
    was_finished: bool = False


class Settings(Callback):
    """config.yaml, once the checkpoint fits: a resumed run goes on with other values than it began with."""

    def __init__(self, folder: Path, config: Config) -> None:
        self._folder, self._config = folder, config

    def start(self, trainer: Trainer) -> None:
        write_config(self._folder, self._config)


def train_run(config: Config, resume: Path | None = None) -> RunResult:
    """Train from a config in a new run folder, or go on from `resume`: the last checkpoint of a run folder, or another one.

    Raises OSError or ValueError that say what is wrong, NonFiniteLossError where training breaks down.
    """
    trainer = Trainer(config.training)
    splits = {s: load_dataset(config.data.name, s, config.data.root, config.data.download) for s in ("train", "validation")}
    data = splits["train"]
    torch.manual_seed(config.training.seed)
    model = build_model(config, data.img_shape, data.num_classes)
    checkpoint = None if resume is None else read_checkpoint(resume)
    folder = create_run_folder(config) if resume is None else run_folder_of(resume)
    if checkpoint is not None and (figures := _finished(folder, checkpoint, config)):
        return RunResult(folder, figures, None, config.training.steps, was_finished=True)

    logging, checkpoints = config.logging, folder / "checkpoints"
    metrics = Metrics(folder / "metrics.jsonl", logging.log_every)
    callbacks = [Settings(folder, config)]
    if logging.validate_every:  # before the metrics, which it has a figure for
        callbacks.append(Validation(splits["validation"], logging.validate_every, metrics, checkpoints))
    callbacks += [metrics, Checkpoints(checkpoints, logging)]
    if logging.sample_every:
        callbacks.append(SamplePictures(folder / "samples", config))
    if logging.progress:
        callbacks.append(Progress())

    trainer.callbacks = callbacks
    trained = trainer.fit(model, data, checkpoint)
    if trainer.stopped_by is not None:
        return RunResult(folder, {}, trainer.stopped_by.name, trainer.step)
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    figures = {"steps": trainer.step, **_summary(records)}
    figures |= write_pictures(folder, trained, config, data.images[:8].to(trainer.device), records)
    figures |= judge_samples(folder, trained, config, data)
    write_atomically(folder / "figures.json", json.dumps(figures, indent=1).encode())
    write_report(folder)
    return RunResult(folder, figures, None, trainer.step)


def _finished(folder: Path, checkpoint: Checkpoint, config: Config) -> dict:
    """The figures that the run ended with, where its last step is done and its figures are those of that step; else {}."""
    try:
        figures = json.loads((folder / "figures.json").read_text())
    except (FileNotFoundError, ValueError):
        return {}
    done = checkpoint.meta["state"]["step"] == config.training.steps == figures["steps"]
    return figures if done else {}


def _summary(records: list[dict]) -> dict:
    """Figures of the whole training, from the lines of metrics.jsonl: they outlive a stop."""
    if not records:
        return {}
    recent = [r["loss"] for r in records[-20:]]
    summary = {
        "training_minutes": round(records[-1]["seconds"] / 60, 2),
        "images_per_s": records[-1]["images_per_s"],
        "loss": round(sum(recent) / len(recent), 5),
    }
    validated = [r["validation_loss"] for r in records if "validation_loss" in r]
    return summary | ({"validation_loss": round(validated[-1], 5)} if validated else {})


def write_pictures(folder: Path, model: DiffusionModel, config: Config, real: torch.Tensor, records: list[dict]) -> dict:
    """samples.png, denoising.webp, noising.png and loss.png; returns the sampling speed."""
    begin = time.perf_counter()
    frames = min(FRAMES, config.diffusion.sampling_steps)
    (samples, frames), _ = draw_samples(model, config.logging.num_samples, config, config.training.seed, frames=frames)
    seconds = time.perf_counter() - begin
    columns = sample_columns(model)
    save_images(samples, folder / "samples.png", nrow=columns, scale=None)
    save_animation(list(frames), folder / "denoising.webp", nrow=columns, scale=None)
    last = model.timesteps - 1
    shown = sorted({round(i * last / (NOISED_SHOWN - 1)) for i in range(NOISED_SHOWN)})
    visualize_diffusion_process(model, real, shown, save_path=folder / "noising.png")
    if records:  # a resumed run may have had nothing left to train
        plot_loss([r["loss"] for r in records], save_path=folder / "loss.png", steps=[r["step"] for r in records])
    return {"samples_per_s": round(len(samples) / seconds, 1), "sampling_steps": config.diffusion.sampling_steps}


def judge_samples(folder: Path, model: DiffusionModel, config: Config, data: ImageDataset) -> dict:
    """Samples held against the training images, see `evaluation.judge`; nearest.png shows eight over their nearest ones."""
    count = config.logging.judge_samples
    if not count or data.labels is None:
        return {}
    from ..evaluation import judge, nearest

    samples, labels = draw_samples(model, count, config, config.training.seed + 1)
    samples = samples.cpu().clamp(-1, 1)
    indices, _ = nearest(samples[:NEAREST_SHOWN], data.images)
    pairs = torch.cat([samples[:NEAREST_SHOWN], data.images[indices.flatten()]])
    save_images(pairs, folder / "nearest.png", nrow=len(pairs) // 2, scale=None)
    found = judge(samples, labels, data.images, data.labels, seed=config.training.seed)
    return {key: round(v, 4) if isinstance(v, float) else v for key, v in found.items()}
