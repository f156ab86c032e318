import math

import pytest
import torch
from torch import nn

from fastdiff.config import TrainingConfig
from fastdiff.training.optim import Average, build_optimizer, flatten_trained, learning_rate


def test_warm_up_then_cosine_to_zero():
    config = TrainingConfig(steps=20, warmup_steps=4, lr=0.8)
    rates = [learning_rate(step, config) for step in range(21)]
    assert rates[:4] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert rates[4] == pytest.approx(0.8)
    assert rates[12] == pytest.approx(0.4)
    assert rates[8] == pytest.approx(0.8 * 0.5 * (1 + math.cos(math.pi / 4)))
    assert rates[20] == pytest.approx(0)
    assert min(rates[:20]) > 0, "every step learns"


def test_constant_without_warm_up():
    config = TrainingConfig(steps=5, warmup_steps=0, schedule="constant", lr=0.3)
    assert [learning_rate(step, config) for step in range(5)] == [0.3] * 5


def test_more_warm_up_than_steps():
    config = TrainingConfig(steps=3, warmup_steps=10, lr=1.0)
    assert [learning_rate(step, config) for step in range(3)] == pytest.approx([0.1, 0.2, 0.3])


def test_the_average_follows_the_stated_decay():
    model = nn.Linear(1, 1, bias=False)
    average = Average(model, flatten_trained(model), decay=0.3)
    expected = None
    for n, value in enumerate([1.0, 5.0, -2.0, 7.0, 3.0]):
        with torch.no_grad():
            model.weight.fill_(value)
        average.update()
        decay = min(0.3, (1 + n) / (10 + n))  # 0.1, 2/11, 0.25, 0.3, 0.3
        expected = value if expected is None else decay * expected + (1 - decay) * value
        assert average.model.weight.item() == pytest.approx(expected, rel=1e-6)


def test_the_average_takes_buffers_as_they_are():
    model = nn.BatchNorm1d(2)
    average = Average(model, flatten_trained(model), decay=0.99)
    for _ in range(3):
        model(torch.randn(8, 2))
        average.update()
    assert torch.equal(average.model.running_mean, model.running_mean)
    assert not torch.equal(model.running_mean, torch.zeros(2))


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd"])
def test_biases_and_norms_do_not_decay(name, build):
    model = build()
    config = TrainingConfig(optimizer=name, lr=0.1, weight_decay=0.5)
    optimizer = build_optimizer(flatten_trained(model), config)
    decays = {id(p): g["weight_decay"] for g in optimizer.param_groups for flat in g["params"] for p in flat.parameters}
    assert len(decays) == len(list(model.parameters()))
    for module in model.modules():
        for own, parameter in module.named_parameters(recurse=False):
            plain = own == "bias" or isinstance(module, nn.GroupNorm | nn.BatchNorm2d)
            assert decays[id(parameter)] == (0.0 if plain else 0.5), (type(module).__name__, own)

    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer.step()  # with gradients of zero
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed
    assert not any(name.endswith("bias") for name in changed)


def test_an_unknown_optimizer_is_named():
    config = TrainingConfig()
    config.optimizer = "lion"
    with pytest.raises(ValueError, match="adamw, adam or sgd, got 'lion'"):
        build_optimizer(flatten_trained(nn.Linear(1, 1)), config)
