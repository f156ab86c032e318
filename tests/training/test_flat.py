"""Parameters in one tensor stay what they were: values, identity, memory format, gradients, optimizer steps."""

import copy

import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from fastdiff.config import TrainingConfig
from fastdiff.training import Trainer
from fastdiff.training.flat import ALIGNMENT, flatten, parts
from fastdiff.training.optim import build_optimizer, flatten_trained


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 5, 3), nn.GroupNorm(1, 5), nn.Conv2d(5, 7, 3), nn.Flatten(), nn.Linear(7, 2))


def test_parameters_become_views_and_stay_themselves() -> None:
    model = network().to(memory_format=torch.channels_last)
    before = {name: (p, p.detach().clone(), p.stride()) for name, p in model.named_parameters()}
    flat = flatten(list(model.parameters()))
    memory = flat.untyped_storage().data_ptr()
    for name, p in model.named_parameters():
        same, value, stride = before[name]
        assert p is same
        assert torch.equal(p, value)
        assert p.stride() == stride
        assert p.untyped_storage().data_ptr() == memory
        assert p.storage_offset() % ALIGNMENT == 0
    with torch.no_grad():
        flat.fill_(2)
    assert all(torch.equal(p, torch.full_like(p, 2)) for p in model.parameters())


def test_backward_adds_to_the_flat_gradient() -> None:
    model, plain = network(), network()
    flat = flatten(list(model.parameters()))
    x = torch.randn(4, 3, 5, 5)
    for m in (model, plain):
        for _ in range(2):
            m(x).square().sum().backward()
    for p, q, g in zip(model.parameters(), plain.parameters(), flat.split(flat.grad), strict=True):
        assert_close(p.grad, q.grad)
        assert torch.equal(g, q.grad)
    flat.grad.zero_()
    assert not any(p.grad.any() for p in model.parameters())


def test_a_parameter_that_is_a_view_of_another_keeps_its_values() -> None:
    whole = torch.arange(12.0).reshape(3, 4)
    sliced, expanded = nn.Parameter(whole[:, 1:3]), nn.Parameter(torch.ones(1, 3).expand(2, 3))
    flatten([sliced, expanded])
    assert torch.equal(sliced, whole[:, 1:3])
    assert torch.equal(expanded, torch.ones(2, 3))


def test_an_optimizer_does_the_same_to_them() -> None:
    config = TrainingConfig(lr=0.1, weight_decay=0.5)
    model, plain = network().to(memory_format=torch.channels_last), network()
    optimizer = build_optimizer(flatten_trained(model), config)
    decayed = [p for p in plain.parameters() if p.dim() > 1]
    rest = [p for p in plain.parameters() if p.dim() == 1]
    reference = torch.optim.AdamW([{"params": decayed, "weight_decay": 0.5}, {"params": rest, "weight_decay": 0.0}], lr=0.1)
    x = torch.randn(4, 3, 5, 5)
    for _ in range(4):
        for m, o in ((model, optimizer), (plain, reference)):
            F.mse_loss(m(x), torch.ones(4, 2)).backward()
            o.step()
            for group in o.param_groups:
                for p in group["params"]:
                    p.grad.zero_()
    for p, q in zip(model.parameters(), plain.parameters(), strict=True):
        assert_close(p.detach(), q.detach(), rtol=1e-4, atol=1e-5)

    (state,) = (optimizer.state[p] for p in optimizer.param_groups[0]["params"])
    moments = parts(optimizer.param_groups[0]["params"][0], state["exp_avg_sq"])
    for moment, q in zip(moments, decayed, strict=True):
        assert_close(moment, reference.state[q]["exp_avg_sq"], rtol=1e-3, atol=1e-8)


def test_weights_that_are_not_trained_stay_and_are_averaged_as_they_are(data, build) -> None:
    model = build()
    frozen = model.network.conv_in.weight.requires_grad_(False)
    before, other = frozen.clone(), copy.deepcopy(model.network.conv_out.weight)
    ema = Trainer(TrainingConfig(steps=2, batch_size=8, lr=0.1, warmup_steps=0)).fit(model, data)
    assert torch.equal(frozen, before)
    assert torch.equal(ema.network.conv_in.weight, before)
    assert not torch.equal(model.network.conv_out.weight, other)
