"""Plans: later calls follow the first, until the network has changed; what cannot be noted is not."""

import copy
import gc
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from fastdiff.models import UNet
from fastdiff.nn import TimeResidualBlock, packed, repack
from fastdiff.nn.fused import Map, on_maps
from fastdiff.nn.fused.plan import MOST, plans_of

pytestmark = pytest.mark.usefixtures("needs_kernels")


@pytest.fixture
def needs_kernels() -> None:
    from fastdiff import ops

    if not ops.REGISTRY["conv2d_fused"].compiled("CPU"):
        pytest.skip("plans are of fused inference, which needs the kernels")


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each convolution or tensor that a call asks of a Map: none where a plan ran."""
    asked: list[int] = []
    for name in ("convolved", "tensor"):
        own = getattr(Map, name)
        monkeypatch.setattr(Map, name, lambda *a, own=own, **k: asked.append(1) or own(*a, **k))
    return asked


def small(awake: Callable[[nn.Module], nn.Module]) -> UNet:
    net = UNet(1, 8, 16, (1, 2), 1, (2,), num_classes=3)
    return awake(net).eval()


def fresh(net: nn.Module, *args: torch.Tensor) -> torch.Tensor:
    """What a copy of the network, which has no plans, answers."""
    return copy.deepcopy(net)(*args)


@pytest.fixture(autouse=True)
def without_gradients() -> object:
    with torch.no_grad():
        yield


def images(n: int = 2, size: int = 8, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, 1, size, size, generator=torch.Generator().manual_seed(seed))


def test_later_calls_follow_the_first_to_the_bit(awake, runs: list[int]) -> None:
    net, t = small(awake), torch.tensor([3.0, 700.0])
    net(images(), t)
    runs.clear()
    x, u = images(seed=1), torch.tensor([9.0, 4.0])
    got = [net(x, u), net(x, u, torch.tensor([1, 2]))]
    assert not runs
    assert got[0].data_ptr() != got[1].data_ptr()
    assert torch.equal(got[0], fresh(net, x, u))
    assert torch.equal(got[1], fresh(net, x, u, torch.tensor([1, 2])))


def test_shapes_strides_and_autocast_have_plans_of_their_own(awake) -> None:
    net, t = small(awake), torch.tensor([3.0, 700.0])
    calls = [images(), images(size=9), images().to(memory_format=torch.channels_last), images().transpose(2, 3)]
    for x in calls * 2:
        y = net(x, t)
        assert torch.equal(y, fresh(net, x, t))
        assert y.stride() == fresh(net, x, t).stride()
    with torch.autocast("cpu", torch.bfloat16):
        for _ in range(2):
            assert torch.equal(net(calls[0], t), fresh(net, calls[0], t))
            assert net(calls[0], t).dtype is torch.bfloat16
    assert net(calls[0], t).dtype is torch.float32


def test_there_are_never_too_many(awake) -> None:
    net = small(awake)
    for n in range(1, MOST + 4):
        net(images(n), 3.0)
    assert len(plans_of(net).of) == MOST


CHANGES: dict[str, Callable[[UNet], object]] = {
    "weight in place": lambda net: net.conv_in.weight.mul_(2),
    "running on other weights": lambda net: net.load_state_dict({k: v + 0.1 for k, v in net.state_dict().items()}),
    "weight replaced": lambda net: setattr(net.conv_in, "weight", nn.Parameter(net.conv_in.weight * 2)),
    "data and repack": lambda net: (net.conv_in.weight.data.mul_(2), repack(net)),
    "module replaced": lambda net: setattr(net.middle[0], "attention", None),
    "attribute": lambda net: setattr(net.middle[0].residual.norm1, "eps", 0.5),
    "activation": lambda net: setattr(net.norm_out, "act", "gelu"),
    "dtype": lambda net: net.double(),
    "parametrised": lambda net: parametrize.register_parametrization(net.conv_in, "weight", nn.ReLU()),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_the_network_is_noticed(awake, change: str) -> None:
    net, x = small(awake), images()
    before = net(x, 3.0)
    CHANGES[change](net)
    x = x.to(net.conv_in.bias.dtype)
    after = net(x, 3.0)
    assert not torch.equal(after.float(), before)
    torch.testing.assert_close(after, fresh(net, x, 3.0))


def test_a_fused_optimizer_step_is_noticed(awake) -> None:
    net, x = small(awake), images()
    before = net(x, 3.0)
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1, fused=True)
    for p in net.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    after = net(x, 3.0)
    assert not torch.equal(after, before)
    assert torch.equal(after, fresh(net, x, 3.0))


@pytest.mark.parametrize("register", ["register_forward_hook", "register_forward_pre_hook"])
def test_hooks_are_called(awake, register: str) -> None:
    net, calls = small(awake), []
    net(images(), 3.0)
    getattr(net.middle[0].residual, register)(lambda *_: calls.append(1))
    net(images(), 3.0)
    assert calls == [1]


def test_training_takes_no_plan(awake) -> None:
    net = awake(TimeResidualBlock(4, 4, 6, dropout=0.5))
    x, emb = torch.randn(2, 4, 5, 5), torch.randn(2, 6)
    net.eval()
    assert torch.equal(net(x, emb), net(x, emb))
    net.train()
    assert not torch.equal(net(x, emb), net(x, emb))
    with torch.enable_grad():
        assert net.eval()(x, emb).requires_grad


def test_nothing_is_kept_through_training(awake) -> None:
    net = small(awake)
    net(images(), 3.0)
    assert any(id(p) in packed._kept for p in net.parameters())
    with torch.enable_grad():
        net.train()(images(), 3.0)
    assert not any(id(owner) in packed._kept for owner in (*net.parameters(), *net.modules()))
    assert not plans_of(net).of


def test_hooks_of_all_modules_are_called(awake) -> None:
    net, calls = small(awake), []
    net(images(), 3.0)
    hook = nn.modules.module.register_module_forward_hook(lambda module, *_: calls.append(type(module)))
    net(images(), 3.0)
    hook.remove()
    assert nn.Conv2d in calls


class Odd(nn.Module):
    def __init__(self, what: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.what = what
        self.scale = nn.Parameter(torch.ones(()))

    @on_maps
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.what(x.tensor() if isinstance(x, Map) else x) * self.scale


def test_random_numbers_are_drawn_again() -> None:
    net, x = Odd(lambda x: x + torch.rand(x.shape)).eval(), images()
    assert not torch.equal(net(x), net(x))


def test_values_are_read_again() -> None:
    net = Odd(lambda x: x if x.sum().item() > 0 else -x).eval()
    assert torch.equal(net(torch.ones(1, 1, 2, 2)), net(-torch.ones(1, 1, 2, 2)))


def test_inputs_are_written_again() -> None:
    net, x = Odd(lambda x: x.add_(1)).eval(), torch.zeros(1, 1, 2, 2)
    assert [float(net(x).mean()) for _ in range(3)] == [1, 2, 3]


def test_lists_and_several_results_are_noted(runs: list[int]) -> None:
    def mixed(x: torch.Tensor) -> torch.Tensor:
        low, high = x.chunk(2, 2)
        largest, where = x.max(3, keepdim=True)
        return torch.cat([high, low + torch.ones(3)[1], low], 2) * largest.mean() + where.float().mean()

    net = Odd(mixed).eval()
    net(images())
    runs.clear()
    x = images(seed=5)
    assert torch.equal(net(x), mixed(x))
    assert not runs


def test_a_network_goes_with_its_plans(awake) -> None:
    net = small(awake)
    net(images(), 3.0)
    seen = weakref.ref(net)
    del net
    gc.collect()
    assert seen() is None
