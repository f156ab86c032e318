"""Training: the loop, its callbacks, checkpoints, run folders."""

from .callbacks import Callback, Checkpoints, Metrics, Progress, SamplePictures, Validation
from .checkpoint import Checkpoint, load, load_model, read_checkpoint, save_checkpoint
from .ddpm_trainer import DDPMTrainer
from .run import RunResult, train_run
from .run_folder import latest_run, run_folder_of
from .trainer import NonFiniteLossError, Trainer

__all__ = [
    "Callback",
    "Checkpoint",
    "Checkpoints",
    "DDPMTrainer",
    "Metrics",
    "NonFiniteLossError",
    "Progress",
    "RunResult",
    "SamplePictures",
    "Trainer",
    "Validation",
    "latest_run",
    "load",
    "load_model",
    "read_checkpoint",
    "run_folder_of",
    "save_checkpoint",
    "train_run",
]
