import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fastdiff.diffusion import DiffusionModel, NoiseScheduler
from fastdiff.training.ddpm_trainer import DDPMTrainer


class Affine(nn.Module):
    def __init__(self, num_classes=None):
        super().__init__()
        self.num_classes = num_classes
        self.weight = nn.Parameter(torch.zeros(()))
        self.seen = []

    def forward(self, x, t, labels=None):
        self.seen.append(labels)
        return self.weight * x


def batches(count=8, size=4):
    x = torch.randn(count, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(x, torch.zeros(count)), size)


def test_losses_are_kept_and_averaged():
    trainer = DDPMTrainer(Affine(), NoiseScheduler(8), device="cpu", seed=0)
    loss = trainer.train_step(torch.randn(2, 1, 4, 4))
    assert isinstance(loss, float)
    mean = trainer.train_epoch(batches())
    assert len(trainer.train_losses) == 3
    assert mean == pytest.approx(sum(trainer.train_losses[1:]) / 2)


def test_it_learns_and_the_seed_decides_everything():
    def run(seed):
        trainer = DDPMTrainer(Affine(), NoiseScheduler(100, rescale_betas=True), learning_rate=0.05, seed=seed)
        return [trainer.train_epoch(batches(64, 32)) for _ in range(20)]

    history = run(1)
    assert history[-1] < 0.7 * history[0]
    assert run(1) == history
    assert run(2) != history


def test_labels_count_where_the_network_has_classes():
    plain, conditional = (DDPMTrainer(Affine(n), NoiseScheduler(8)) for n in (None, 3))
    plain.train_epoch(batches())
    conditional.train_epoch(batches())
    assert plain.model.seen == [None, None]
    assert all(labels.dtype is torch.int64 for labels in conditional.model.seen)
    conditional.train_epoch([torch.zeros(2, 1, 4, 4)])
    assert conditional.model.seen[-1] is None


def test_a_diffusion_model_keeps_its_prediction_type():
    model = DiffusionModel(8, network=Affine(), prediction="x0")
    trainer = DDPMTrainer(model, model.scheduler, learning_rate=0.1)
    trainer.train_epoch([torch.ones(4, 1, 4, 4)] * 50)
    assert model.network.weight.item() == pytest.approx(1, abs=0.2)


def test_an_empty_loader_is_refused():
    with pytest.raises(ValueError, match="loader is empty"):
        DDPMTrainer(Affine(), NoiseScheduler(8)).train_epoch([])
