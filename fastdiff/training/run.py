"""The main job: a run folder, training, and what it leaves behind: pictures, figures, report."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from ..config import Config, build_model
from ..data import load_dataset
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
    Checkpoints,
    Metrics,
    Progress,
    SamplePictures,
    Validation,
    draw_samples,
    sample_columns,
)
from .checkpoint import read_checkpoint
from .run_folder import create_run_folder
from .trainer import Trainer

NOISED_SHOWN = 8  # timesteps in noising.png
FRAMES = 40  # of denoising.webp


@dataclass(frozen=True)
class RunResult:
    """Where the run is, its final figures, and the signal that stopped it early (None: it ended by itself)."""

    folder: Path
    figures: dict
    stopped_by: str | None
    step: int


def train_run(config: Config, resume: Path | None = None) -> RunResult:
    """Train from a config in a new run folder, or go on in the run folder `resume` from its last checkpoint."""
    splits = {s: load_dataset(config.data.name, s, config.data.root, config.data.download) for s in ("train", "validation")}
    data = splits["train"]
    torch.manual_seed(config.training.seed)
    model = build_model(config, data.img_shape, data.num_classes)
    checkpoint = None if resume is None else read_checkpoint(resume)
    folder = resume or create_run_folder(config)

    logging, checkpoints = config.logging, folder / "checkpoints"
    metrics = Metrics(folder / "metrics.jsonl", logging.log_every)
    callbacks = [metrics, Checkpoints(checkpoints, logging)]
    if logging.validate_every:
        callbacks.insert(0, Validation(splits["validation"], logging.validate_every, metrics, checkpoints))
    if logging.sample_every:
        callbacks.append(SamplePictures(folder / "samples", logging, config.diffusion))
    if logging.progress:
        callbacks.append(Progress())

    begin = time.perf_counter()
    trainer = Trainer(config.training, callbacks)
    trained = trainer.fit(model, data, checkpoint)
    if trainer.stopped_by is not None:
        return RunResult(folder, {}, trainer.stopped_by.name, trainer.step)
    figures = {"steps": trainer.step, "training_minutes": round((time.perf_counter() - begin) / 60, 2)}
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    figures["images_per_s"] = records[-1]["images_per_s"]
    recent = [r["loss"] for r in records[-20:]]
    figures["loss"] = round(sum(recent) / len(recent), 5)
    if logging.validate_every:
        figures["validation_loss"] = round(callbacks[0].loss, 5)
    figures |= write_pictures(folder, trained, config, data.images[:8].to(trainer.device), [r["loss"] for r in records])
    figures |= _judge(trained, config, data)
    write_atomically(folder / "figures.json", json.dumps(figures, indent=1).encode())
    write_report(folder)
    return RunResult(folder, figures, None, trainer.step)


def write_pictures(folder: Path, model: DiffusionModel, config: Config, real: torch.Tensor, losses: list[float]) -> dict:
    """samples.png, denoising.webp, noising.png and loss.png; returns the sampling speed."""
    begin = time.perf_counter()
    (samples, frames), _ = draw_samples(
        model, config.logging.num_samples, config.diffusion, config.training.seed, frames=FRAMES
    )
    seconds = time.perf_counter() - begin
    columns = sample_columns(model)
    save_images(samples, folder / "samples.png", nrow=columns, scale=None)
    save_animation(list(frames), folder / "denoising.webp", nrow=columns, scale=None)
    last = model.timesteps - 1
    shown = sorted({round(i * last / (NOISED_SHOWN - 1)) for i in range(NOISED_SHOWN)})
    visualize_diffusion_process(model, real, shown, save_path=folder / "noising.png")
    plot_loss(losses, save_path=folder / "loss.png", xlabel=f"step / {config.logging.log_every}")
    return {"samples_per_s": round(len(samples) / seconds, 1), "sampling_steps": config.diffusion.sampling_steps}


def _judge(model: DiffusionModel, config: Config, data) -> dict:
    """Samples held against the training images, see `evaluation.judge`."""
    count = config.logging.judge_samples
    if not count or data.labels is None:
        return {}
    from ..evaluation import judge

    samples, labels = draw_samples(model, count, config.diffusion, config.training.seed + 1)
    found = judge(samples.cpu().clamp(-1, 1), labels, data.images, data.labels, seed=config.training.seed)
    return {key: round(v, 4) if isinstance(v, float) else v for key, v in found.items()}
