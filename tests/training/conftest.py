import pytest
import torch

from fastdiff.config import TrainingConfig
from fastdiff.data import digits
from fastdiff.diffusion import DiffusionModel, NoiseScheduler
from fastdiff.models import UNet

SMALL = {"in_channels": 1, "model_channels": 8, "time_embed_dim": 16, "channel_multipliers": (1,), "num_res_blocks": 1}


@pytest.fixture(scope="session")
def data():
    """179 digits; with batches of 32 an epoch has five."""
    return digits("validation")


@pytest.fixture
def build():
    """A small new model; the same arguments, the same weights."""

    def build(seed=0, timesteps=20, label_dropout=0.1, **unet):
        torch.manual_seed(seed)
        network = UNet(**{**SMALL, "attention_resolutions": (), "num_classes": 10, **unet})
        scheduler = NoiseScheduler(timesteps, schedule_type="cosine")
        return DiffusionModel(network=network, scheduler=scheduler, img_shape=(8, 8, 1), label_dropout=label_dropout)

    return build


@pytest.fixture
def settings():
    def settings(**values):
        return TrainingConfig(**{"steps": 4, "batch_size": 32, "warmup_steps": 2, "device": "cpu", **values})

    return settings
