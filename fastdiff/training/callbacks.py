"""What happens around the training loop: progress, metrics, validation, checkpoints, sample pictures."""

from __future__ import annotations

import json
import math
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from .. import ops
from ..config import Config, LoggingConfig
from ..data import Batches, ImageDataset
from ..diffusion import DiffusionModel
from ..diffusion.samplers import OWN_SPACING
from ..visualization import save_images
from ..visualization.files import write_atomically
from .checkpoint import read_checkpoint, save_checkpoint
from .precision import autocast
from .trainer import NonFiniteLossError, Trainer


class Callback:
    """Hooks of `Trainer.fit`: start, after each optimizer step, end (also when stopped by a signal), close (always)."""

    def start(self, trainer: Trainer) -> None: ...

    def step(self, trainer: Trainer) -> None: ...

    def end(self, trainer: Trainer) -> None: ...

    def close(self, trainer: Trainer) -> None: ...


class Progress(Callback):
    """A bar with loss, images/s and the time left."""

    def start(self, trainer: Trainer) -> None:
        self._bar = tqdm(total=trainer.config.steps, initial=trainer.step, desc="training", unit="step")

    def step(self, trainer: Trainer) -> None:
        shown = f"loss {trainer.loss:.4f}, {trainer.images_per_s:.0f} images/s"
        self._bar.set_postfix_str(shown, refresh=False)
        self._bar.update()

    def close(self, trainer: Trainer) -> None:
        if hasattr(self, "_bar"):
            self._bar.close()


class Metrics(Callback):
    """Lines of metrics.jsonl. A resumed run goes on where its checkpoint stands: later lines are of steps done again."""

    def __init__(self, path: Path, every: int) -> None:
        self._path, self._every = path, every
        self.extra: dict[str, Any] = {}  # figures that other callbacks have for the next line

    def start(self, trainer: Trainer) -> None:
        kept = [line for line in self._lines() if json.loads(line)["step"] <= trainer.step]
        write_atomically(self._path, "".join(line + "\n" for line in kept).encode())
        self._file = self._path.open("a")
        self._begin = time.perf_counter() - (json.loads(kept[-1])["seconds"] if kept else 0)

    def _lines(self) -> list[str]:
        """Whole lines: one that was being written when the machine stopped is none."""
        text = self._path.read_text() if self._path.exists() else ""
        return [line for line in text.split("\n")[:-1] if line.endswith("}")]

    def step(self, trainer: Trainer) -> None:
        if trainer.step % self._every and trainer.step < trainer.config.steps and not self.extra:
            return
        record = {
            "step": trainer.step,
            "epoch": trainer.epoch,
            "loss": trainer.loss,
            "lr": trainer.rate,
            "gradient_norm": trainer.gradient_norm,
            "images_per_s": round(trainer.images_per_s, 1),
            "seconds": round(time.perf_counter() - self._begin, 2),
            **self.extra,
        }
        self.extra = {}
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()

    def close(self, trainer: Trainer) -> None:
        if hasattr(self, "_file"):
            self._file.close()


class Validation(Callback):
    """The averaged model's loss on held-out images. The draws are fixed, so losses compare; the best step is kept."""

    STEPS = 4  # each image meets this many timesteps
    MOST = 1024  # images, the first ones: all 5,000 of MNIST would take a minute each time
    SEED = 2**63  # no training seed is that large

    def __init__(self, data: ImageDataset, every: int, metrics: Metrics, folder: Path) -> None:
        self._data, self._every, self._metrics, self._folder = data, every, metrics, folder
        self.best = math.inf
        self.loss = math.nan

    def start(self, trainer: Trainer) -> None:
        if trainer.step:
            with suppress(FileNotFoundError, ValueError):  # none yet, or a damaged one: the next is the best
                self.best = read_checkpoint(self._folder / "best").meta["state"]["validation_loss"]

    def step(self, trainer: Trainer) -> None:
        if trainer.step % self._every and trainer.step < trainer.config.steps:
            return
        self.loss = self.evaluate(trainer.ema, trainer.device)
        if not math.isfinite(self.loss):  # said here, before these weights replace the last good checkpoint
            raise NonFiniteLossError(f"validation loss {self.loss:g} after step {trainer.step}: lower training.lr")
        self._metrics.extra["validation_loss"] = self.loss
        if self.loss < self.best:
            self.best = self.loss
            state = trainer.state() | {"validation_loss": self.loss}
            save_checkpoint(self._folder / "best", model=trainer.model, ema=trainer.ema, state=state)

    @torch.no_grad()
    def evaluate(self, model: DiffusionModel, device: torch.device) -> float:
        seeds = ops.image_seeds(self.SEED, len(self._data), device)
        total, count, was_training = 0.0, 0, model.training
        model.eval()
        for indices, images, labels in Batches(self._data, 256, 0, drop_last=False, shuffle=False).epoch(0):
            if count >= self.MOST:
                break
            labels = None if model.num_classes is None or labels is None else labels.to(device)
            for step in range(self.STEPS):
                loss = model.keyed_loss(images.to(device), labels, seeds[indices.to(device)], step)
                total += float(loss) * len(images)
            count += len(images)
        model.train(was_training)
        return total / (self.STEPS * count)


class Checkpoints(Callback):
    """checkpoints/last at intervals and at the end, checkpoints/step-N where they are to be kept."""

    def __init__(self, folder: Path, logging: LoggingConfig) -> None:
        self._folder, self._logging = folder, logging

    def step(self, trainer: Trainer) -> None:
        if trainer.step % self._logging.checkpoint_every == 0:
            self._save(trainer, "last")
        if self._logging.keep_every and trainer.step % self._logging.keep_every == 0:
            self._save(trainer, f"step-{trainer.step}")

    def end(self, trainer: Trainer) -> None:
        self._save(trainer, "last")

    def _save(self, trainer: Trainer, name: str) -> None:
        parts = {"model": trainer.model, "ema": trainer.ema, "optimizer": trainer.optimizer}
        save_checkpoint(self._folder / name, **parts, state=trainer.state())


class SamplePictures(Callback):
    """samples/step-N.png: the same noise each time, so that pictures compare."""

    def __init__(self, folder: Path, config: Config) -> None:
        self._folder, self._config = folder, config

    def step(self, trainer: Trainer) -> None:
        if trainer.step % self._config.logging.sample_every:
            return
        images = draw_samples(trainer.ema, self._config.logging.num_samples, self._config, trainer.config.seed)[0]
        save_images(images, self._folder / f"step-{trainer.step}.png", nrow=sample_columns(trainer.ema), scale=None)


def sample_columns(model: DiffusionModel) -> int:
    """Pictures side by side: a column for each class where there are few."""
    return model.num_classes if model.num_classes is not None and model.num_classes <= 16 else 8


def draw_samples(
    model: DiffusionModel, count: int, config: Config, seed: int, **sampling: Any
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Images [count, C, H, W] in [-1, 1] by the config's sampler and precision, and their labels: class i % K for image i."""
    labels = None if model.num_classes is None else torch.arange(count) % model.num_classes
    diffusion = config.diffusion
    with autocast(config.training.precision, model.betas.device):
        images = model.sample(
            (count, *model.image_shape),
            labels=labels,
            guidance=diffusion.guidance if labels is not None else 1.0,
            sampler=diffusion.sampler,
            steps=diffusion.sampling_steps,
            spacing=diffusion.spacing or OWN_SPACING.get(diffusion.sampler, "trailing"),
            seed=seed,
            **sampling,
        )
    return images, labels
