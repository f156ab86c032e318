"""The training loop. Data order, timesteps, noise and label dropout are functions of (seed, sample, step), so that a run that
was stopped and resumed is the run that was not, bit for bit."""

from __future__ import annotations

import json
import math
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils.data import Dataset

from .. import ops
from ..config import TrainingConfig
from ..data import Batches
from ..diffusion import DiffusionModel
from .checkpoint import Checkpoint, load_weights, restore_optimizer
from .optim import Average, build_optimizer, flatten_trained, learning_rate
from .precision import autocast, resolve_precision

if TYPE_CHECKING:
    from .callbacks import Callback


class NonFiniteLossError(RuntimeError):
    """The loss or the gradient is not a number any more; the weights are those of the step before."""


class Trainer:
    """Trains a model on a data set, with callbacks for everything else (see `callbacks.py`).

    config: see `TrainingConfig`. What callbacks may read: `step` (optimizer steps done), `model`, `ema` (the model to sample
    from), `loss`, `gradient_norm` and `rate` (learning rate) of the last step, `images_per_s` of the steps alone, smoothed,
    `stopped_by` (the signal that ended it early, or None).
    """

    def __init__(self, config: TrainingConfig | None = None, callbacks: Sequence[Callback] = ()) -> None:
        self.config = config or TrainingConfig()
        self.callbacks = list(callbacks)
        self.device = pick_device(self.config.device)
        self.step = 0
        self.loss = self.gradient_norm = self.rate = self.images_per_s = math.nan
        self.stopped_by: signal.Signals | None = None

    @property
    def ema(self) -> DiffusionModel:
        """The model with averaged weights."""
        return self._average.model

    @property
    def epoch(self) -> int:
        return self.step // len(self.batches)

    def fit(self, model: DiffusionModel, data: Dataset, resume: Checkpoint | None = None) -> DiffusionModel:
        """Train up to config.steps and return the averaged model, in eval mode.

        data: an `ImageDataset` or any map-style data set of (image, label) pairs or images, [C, H, W] in [-1, 1].
        resume: a checkpoint of the same model and config, to go on from.
        Ctrl-C and SIGTERM end it after the step that is under way. Raises NonFiniteLossError, ValueError for empty data
        and for a checkpoint that does not fit.
        """
        config = self.config
        self.step, self.stopped_by = 0, None
        self.loss = self.gradient_norm = self.rate = self.images_per_s = math.nan
        self.batches = Batches(data, config.batch_size, config.seed)
        self.seeds = ops.image_seeds(config.seed, len(data), self.device)
        layout = torch.channels_last if config.channels_last else torch.contiguous_format
        self.model = model.to(self.device, memory_format=layout).train()
        self._flats = flatten_trained(self.model)
        self.optimizer = build_optimizer(self._flats, config)
        self._average = Average(self.model, self._flats, config.ema_decay)
        if resume is not None:
            self._restore(resume)
        if config.compile:
            self.model.network.compile()

        with self._stop_on_signal():
            try:
                self._call("start")
                while self.step < config.steps and self.stopped_by is None:
                    epoch, done = divmod(self.step, len(self.batches))
                    for batch in self.batches.epoch(epoch, done):
                        self._timed_step(*batch)
                        self._call("step")
                        if self.step >= config.steps or self.stopped_by is not None:
                            break
                self._call("end")
            finally:
                self._call("close")
        self.model.eval()
        return self.ema.eval()

    def _timed_step(self, indices: torch.Tensor, *batch: torch.Tensor | None) -> None:
        begin = time.perf_counter()
        self._train_step(indices, *batch)
        rate = len(indices) / (time.perf_counter() - begin)
        self.images_per_s = rate if math.isnan(self.images_per_s) else 0.95 * self.images_per_s + 0.05 * rate

    def _train_step(self, indices: torch.Tensor, images: torch.Tensor, labels: torch.Tensor | None) -> None:
        config = self.config
        layout = torch.channels_last if config.channels_last else torch.contiguous_format
        images = images.to(self.device, torch.float32, memory_format=layout)
        if self.model.num_classes is None:
            labels = None
        elif labels is not None:
            labels = labels.to(self.device)
        seeds = self.seeds[indices.to(self.device)]

        rate = learning_rate(self.step, config)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        for flat in self._flats:
            flat.grad.zero_()
        step = torch.tensor(self.step, device=self.device)
        total = 0.0
        for part in torch.arange(len(images)).chunk(config.accumulate):
            rows = slice(int(part[0]), int(part[-1]) + 1)
            with autocast(config.precision, self.device):
                loss = self.model.keyed_loss(images[rows], None if labels is None else labels[rows], seeds[rows], step)
            share = len(part) / len(images)
            (loss * share).backward()
            total += float(loss.detach()) * share
        gradients = [flat.grad for flat in self._flats]

        self.loss, self.gradient_norm, self.rate = total, float(nn.utils.get_total_norm(gradients)), rate
        if not (math.isfinite(self.loss) and math.isfinite(self.gradient_norm)):
            raise NonFiniteLossError(self._diagnosis(indices, images))
        if self.gradient_norm > (config.clip_norm or math.inf):
            torch._foreach_mul_(gradients, config.clip_norm / self.gradient_norm)
        self.optimizer.step()
        self._average.update()
        self.step += 1

    def _diagnosis(self, indices: torch.Tensor, images: torch.Tensor) -> str:
        what = f"loss {self.loss:g}" if not math.isfinite(self.loss) else f"gradient norm {self.gradient_norm:g}"
        bad = indices[~images.flatten(1).isfinite().all(1).cpu()].tolist()
        if bad:
            advice = f"images {bad[:8]} of the data are not finite: mend or remove them"
        else:
            advice = "lower training.lr or raise training.warmup_steps"
            advice += ", or train in fp32" if resolve_precision(self.config.precision, self.device) != "fp32" else ""
        epoch, batch = divmod(self.step, len(self.batches))
        return f"{what} in step {self.step + 1} (epoch {epoch}, batch {batch}, images {indices[:4].tolist()}...): {advice}"

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps beside weights and optimizer: all that a resumed run must agree on."""
        return {
            "step": self.step,
            "batch_size": self.batches.batch_size,
            "images": len(self.batches.dataset),
            "seed": self.config.seed,
        }

    def _restore(self, checkpoint: Checkpoint) -> None:
        # Rebuilt, so that what was no setting yet when it was written has its default.
        written, state = DiffusionModel.from_config(checkpoint.meta["model"]).config, checkpoint.meta["state"]
        was, now = (
            _settings(json.loads(json.dumps(config)), of)  # tuples become lists
            for config, of in ((written, state), (self.model.config, self.state()))
        )
        for name in now:
            if name != "step" and was.get(name) != now[name]:
                raise ValueError(
                    f"{checkpoint.path} was trained with {name} = {was.get(name)}, this run has {now[name]}: "
                    "a run is resumed with the model, data, batch size and seed that it had"
                )
        if state["step"] > self.config.steps:
            raise ValueError(
                f"{checkpoint.path} has done {state['step']} steps: training.steps must be at least that, "
                f"got {self.config.steps}"
            )
        load_weights(self.model, checkpoint.part("model"), checkpoint.path)
        load_weights(self.ema, checkpoint.part("ema"), checkpoint.path)
        self.step = state["step"]
        self._average.updates = self.step
        restore_optimizer(self.optimizer, checkpoint)

    def _call(self, hook: str) -> None:
        for callback in self.callbacks:
            getattr(callback, hook)(self)

    @contextmanager
    def _stop_on_signal(self) -> Iterator[None]:
        """Ctrl-C and SIGTERM let the step end; a second Ctrl-C interrupts at once. Off the main thread: no handlers."""

        def handle(number: int, frame: Any) -> None:
            if self.stopped_by is not None:
                raise KeyboardInterrupt
            self.stopped_by = signal.Signals(number)

        before = {}
        try:
            for number in (signal.SIGINT, signal.SIGTERM):
                before[number] = signal.signal(number, handle)
        except ValueError:
            pass
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _settings(model: dict[str, Any], state: dict[str, Any]) -> dict[str, Any]:
    """What must be the same in a resumed run, in one level: of network, schedule, prediction and data."""
    nested = {key: value for key, value in model.items() if isinstance(value, dict)}
    flat = {key: value for key, value in model.items() if key not in nested}
    return {**flat, **{key: value for part in nested.values() for key, value in part.items()}, **state}


def pick_device(name: str) -> torch.device:
    """auto: CUDA where there is one. Raises ValueError for a device that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device must be auto, cpu, cuda or cuda:N, got {name!r}: {str(error).splitlines()[0]}") from None
    return device
