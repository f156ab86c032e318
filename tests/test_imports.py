"""Ops, layers, networks and diffusion work where jsonargparse, which only the command line needs, is not installed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

BLOCKED = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {absent!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
"""
USES = {
    "ops, nn, models": """
import torch, fastdiff
from fastdiff import models, nn, ops
net = models.UNet(1, 8, 16, (1, 2), 1, (2,))
assert net(torch.randn(2, 1, 8, 8), torch.tensor([3, 5])).shape == (2, 1, 8, 8)
""",
    "training and sampling": """
import torch, fastdiff
from fastdiff import data, diffusion, evaluation, training, visualization
from fastdiff.config import Config, TrainingConfig
from fastdiff.training.run_folder import environment
model = diffusion.DiffusionModel(10, model_channels=8, time_embed_dim=16, channel_multipliers=(1, 2), num_res_blocks=1)
assert environment()["torch"] == torch.__version__
images = data.ImageDataset(torch.rand(4, 1, 8, 8) * 2 - 1)
training.Trainer(TrainingConfig(steps=1, batch_size=2, device="cpu")).fit(model, images)
assert model.sample((2, 1, 8, 8), steps=2, seed=0).isfinite().all()
""",
    "doctor": """
from fastdiff.doctor import examine
lines, healthy = examine()
assert healthy, lines
""",
}


@pytest.mark.parametrize("use", USES)
def test_without_jsonargparse(use: str, tmp_path: Path) -> None:
    program = BLOCKED.format(absent={"jsonargparse", "typeshed_client", "docstring_parser"}) + USES[use]
    done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_the_command_line_says_that_it_is_missing(tmp_path: Path) -> None:
    """And what is blocked here is blocked."""
    program = BLOCKED.format(absent={"jsonargparse"}) + "from fastdiff.config import load_config\nload_config('digits')"
    done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode != 0
    assert "jsonargparse" in done.stderr
