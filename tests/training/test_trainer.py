import math
import signal
import threading

import pytest
import torch
from torch.utils.data import TensorDataset

from fastdiff import ops
from fastdiff.training import Callback, NonFiniteLossError, Trainer
from fastdiff.training.optim import learning_rate
from fastdiff.training.precision import autocast, resolve_precision
from fastdiff.training.trainer import pick_device


class Record(Callback):
    def __init__(self):
        self.losses, self.norms, self.rates, self.hooks = [], [], [], []

    def start(self, trainer):
        self.hooks.append("start")

    def step(self, trainer):
        self.losses.append(trainer.loss)
        self.norms.append(trainer.gradient_norm)
        self.rates.append(trainer.rate)

    def end(self, trainer):
        self.hooks.append("end")

    def close(self, trainer):
        self.hooks.append("close")


@pytest.fixture
def train(data, build, settings):
    """Losses and the rest of a short training: (record, trainer)."""

    def train(dataset=None, network=None, callbacks=(), **values):
        record = Record()
        trainer = Trainer(settings(**values), [record, *callbacks])
        trainer.fit(build(**(network or {})), data if dataset is None else dataset)
        return record, trainer

    return train


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_golden_losses(train):
    record, _ = train(steps=8, lr=5e-3)
    assert record.losses == pytest.approx(GOLDEN, abs=1e-4)


GOLDEN = [1.04605, 1.02895, 0.90255, 0.86882, 0.77791, 0.67526, 0.70436, 0.65907]


def test_it_learns_and_keeps_its_promises_to_callbacks(train, settings):
    record, trainer = train(steps=60, lr=5e-3, ema_decay=0.9)
    assert sum(record.losses[-10:]) < 0.8 * sum(record.losses[:10])
    assert record.hooks == ["start", "end", "close"]
    assert trainer.step == 60
    assert trainer.epoch == 12
    assert trainer.images_per_s > 0
    config = settings(steps=60, lr=5e-3)
    assert record.rates == [learning_rate(step, config) for step in range(60)]
    assert not trainer.ema.training
    assert not trainer.model.training


def test_the_same_seed_gives_the_same_bits(train):
    one, two, other = (train(seed=seed)[1] for seed in (3, 3, 4))
    assert torch.equal(weights(one.model), weights(two.model))
    assert torch.equal(weights(one.ema), weights(two.ema))
    assert not torch.equal(weights(one.model), weights(other.model))


def test_a_trainer_can_be_used_again(train, build, data):
    _, trainer = train()
    first = weights(trainer.ema)
    trainer.fit(build(), data)
    assert trainer.step == 4
    assert torch.equal(weights(trainer.ema), first)


@pytest.mark.parametrize("parts", [2, 5, 32])
def test_accumulation_computes_the_same_batch(train, parts):
    whole, _ = train(clip_norm=0.5)
    cut, _ = train(clip_norm=0.5, accumulate=parts)
    assert cut.losses == pytest.approx(whole.losses, rel=1e-5)
    assert cut.norms == pytest.approx(whole.norms, rel=1e-4)


def test_a_draw_depends_on_seed_sample_and_step_alone(data, build):
    model = build()
    index = torch.tensor([3, 90, 11, 42, 8])

    def loss(index, step=5, seed=7):
        images, labels = data.batch(index)
        return model.keyed_loss(images, labels, ops.image_seeds(seed, len(data))[index], step)

    whole = loss(index)
    torch.testing.assert_close(loss(index[[4, 2, 0, 1, 3]]), whole, rtol=1e-6, atol=0)
    torch.testing.assert_close(torch.stack([loss(i) for i in index.split(1)]).mean(), whole, rtol=1e-5, atol=0)
    assert abs(loss(index, step=6) - whole) > 1e-3
    assert abs(loss(index, seed=8) - whole) > 1e-3


def test_labels_and_noise_do_not_depend_on_torchs_generator(train, data, build, settings):
    one, _ = train()
    record = Record()
    model = build()
    torch.manual_seed(999)
    Trainer(settings(), [record]).fit(model, data)
    assert record.losses == one.losses


def test_gradients_are_clipped(train):
    """With SGD and no momentum yet, the first step moves the weights by lr times the clipped norm."""
    values = {"steps": 1, "optimizer": "sgd", "lr": 0.1, "weight_decay": 0, "warmup_steps": 0, "schedule": "constant"}
    clipped, a = train(clip_norm=0.01, **values)
    free, b = train(clip_norm=0, **values)
    start = train(clip_norm=1e-30, **values)[1]
    assert free.norms == clipped.norms, "what is reported is the norm before clipping"
    moved = [float((weights(t.model) - weights(start.model)).norm()) for t in (a, b)]
    assert moved == pytest.approx([0.1 * 0.01, 0.1 * free.norms[0]], rel=1e-3)


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_other_optimizers_learn(train, optimizer):
    lr = {"adam": 5e-3, "sgd": 0.05}[optimizer]
    record, _ = train(steps=40, optimizer=optimizer, lr=lr)
    assert sum(record.losses[-10:]) < 0.95 * sum(record.losses[:10])


def test_bf16_autocast(train):
    seen = []
    exact, _ = train(steps=6)

    class Watch(Callback):
        def start(self, trainer):
            trainer.model.network.conv_out.register_forward_hook(lambda m, i, out: seen.append(out.dtype))

    half, trainer = train(steps=6, precision="bf16", callbacks=[Watch()])
    assert set(seen) == {torch.bfloat16}
    assert half.losses == pytest.approx(exact.losses, rel=0.02)
    assert half.losses != exact.losses
    assert {p.dtype for p in trainer.model.parameters()} == {torch.float32}


def test_channels_last(train):
    exact, _ = train(steps=6)
    last, trainer = train(steps=6, channels_last=True)
    assert last.losses == pytest.approx(exact.losses, rel=1e-3)
    weight = trainer.model.network.down[0].stages[0].residual.conv1.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert not weight.is_contiguous()


def test_data_without_labels_and_tensor_data_sets(data, train):
    plain, _ = train(dataset=TensorDataset(data.images), network={"num_classes": None, "label_dropout": 0.0})
    pairs, _ = train(dataset=TensorDataset(data.images, data.labels))
    own, _ = train()
    assert pairs.losses == own.losses
    assert all(math.isfinite(loss) for loss in plain.losses)


def test_a_batch_larger_than_the_data(data, train):
    record, trainer = train(dataset=TensorDataset(data.images[:5], data.labels[:5]), steps=3)
    assert trainer.epoch == 3
    assert len(record.losses) == 3


def test_a_poisoned_image_stops_the_training_and_is_named(data, build, settings):
    images = data.images.clone()
    images[77, 0, 3, 3] = math.nan
    record = Record()
    trainer = Trainer(settings(steps=10), [record])
    model = build()
    with pytest.raises(NonFiniteLossError, match=r"loss nan in step \d \(epoch 0, batch \d, .*images \[77\].*not finite"):
        trainer.fit(model, TensorDataset(images, data.labels))
    assert trainer.step == len(record.losses) < 5
    assert weights(model).isfinite().all(), "the weights are those of the step before"
    assert record.hooks == ["start", "close"], "no last checkpoint of it"


def test_a_loss_that_explodes_stops_with_advice(train):
    with pytest.raises(NonFiniteLossError, match=r"in step \d+ \(epoch \d+, batch \d.*lower training.lr"):
        train(steps=30, lr=1e30)


def test_empty_data_is_refused(train):
    with pytest.raises(ValueError, match="empty"):
        train(dataset=TensorDataset(torch.zeros(0, 1, 8, 8)))


def test_a_signal_ends_it_after_the_step_and_handlers_come_back(train):
    class Send(Callback):
        def step(self, trainer):
            if trainer.step == 2:
                signal.raise_signal(signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    record, trainer = train(callbacks=[Send()])
    assert trainer.stopped_by is signal.SIGTERM
    assert trainer.step == 2
    assert record.hooks == ["start", "end", "close"]
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_a_second_ctrl_c_interrupts_at_once(train):
    class Send(Callback):
        def step(self, trainer):
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(callbacks=[Send()])


def test_it_runs_off_the_main_thread(train):
    done = []
    thread = threading.Thread(target=lambda: done.append(train()[1].step))
    thread.start()
    thread.join()
    assert done == [4]


def test_a_device_that_is_not_there():
    for name in ("cuda:99", "gpu", "cpu:x"):
        with pytest.raises(ValueError, match=f"device must be auto, cpu, cuda or cuda:N, got '{name}'"):
            pick_device(name)
    assert pick_device("cpu").type == "cpu"


def test_compile(train, monkeypatch):
    """Tracing, and torch's own kernels for the graph: writing C++ for it takes most of a minute and a compiler."""
    backends = []

    def compile_traced(module):
        backends.append(torch._dynamo.lookup_backend("aot_eager"))
        module._compiled_call_impl = torch.compile(module._call_impl, backend=backends[0])

    monkeypatch.setattr(torch.nn.Module, "compile", compile_traced)
    exact, _ = train(steps=2)
    assert not backends
    compiled, trainer = train(steps=2, compile=True)
    assert len(backends) == 1
    assert compiled.losses == pytest.approx(exact.losses, rel=1e-4)
    assert not any("_orig_mod" in name for name in trainer.model.state_dict())


@pytest.mark.parametrize(("has", "expected"), [({"avx512_bf16": True}, "bf16"), ({"amx_bf16": True}, "bf16"), ({}, "fp32")])
def test_auto_precision_is_bf16_where_the_cpu_has_it(has, expected, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has)
    device = torch.device("cpu")
    assert resolve_precision("auto", device) == expected
    assert resolve_precision("fp32", device) == "fp32"
    assert resolve_precision("bf16", device) == "bf16"
    with autocast("auto", device):
        assert torch.is_autocast_enabled("cpu") == (expected == "bf16")
    assert not torch.is_autocast_enabled("cpu")
