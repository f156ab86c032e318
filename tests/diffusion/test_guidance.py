import pytest
import torch
from torch.testing import assert_close

from fastdiff.diffusion.guidance import Conditions, guided


def test_guidance_identities(toy):
    network = toy(num_classes=3)
    network.eval()
    x, t, labels = torch.randn(2, 1, 4, 4), torch.tensor([3, 3]), torch.tensor([0, 2])
    cond, uncond = network(x, t, labels), network(x, t, torch.tensor([3, 3]))
    network.calls.clear()
    assert torch.equal(guided(network, Conditions(labels), 1.0)(x, t), cond)
    assert network.calls == [((2, 1, 4, 4), False)]
    assert_close(guided(network, Conditions(labels), 0.0)(x, t), uncond)
    assert network.calls[1:] == [((4, 1, 4, 4), False)]
    assert_close(guided(network, Conditions(labels), 3.0)(x, t), uncond + 3 * (cond - uncond))
    assert_close(guided(network, Conditions())(x, t), network(x, t))


def test_guidance_rescale_restores_the_spread(toy):
    network = toy(num_classes=1)
    network.forward = lambda x, t, labels: x * (1 + labels.reshape(-1, 1, 1, 1))
    x, t, labels = torch.randn(2, 1, 8, 8), torch.zeros(2, dtype=torch.long), torch.zeros(2, dtype=torch.long)
    plain, half, full = (guided(network, Conditions(labels), -2.0, phi)(x, t) for phi in (0.0, 0.5, 1.0))
    assert_close(full.std((1, 2, 3)), x.std((1, 2, 3)))  # x is the conditional output
    assert_close(half, (plain + full) / 2)
    assert torch.isfinite(guided(network, Conditions(labels), -2.0, 1.0)(torch.zeros_like(x), t)).all()


class OfContext:
    """x plus the mean of the tokens that count, nothing where none does."""

    def __call__(self, x, t, labels=None, context=None, context_mask=None):
        self.batch = len(x)
        counts = torch.ones(context.shape[:2]) if context_mask is None else context_mask.float()
        return x + ((context.mean(2) * counts).sum(1) / counts.sum(1).clamp(min=1)).reshape(-1, 1, 1, 1)


@pytest.mark.parametrize("masked", [False, True])
def test_guidance_towards_a_context(masked):
    x, t, context = torch.randn(2, 1, 3, 3), torch.zeros(2, dtype=torch.long), torch.randn(2, 5, 4)
    mask = torch.arange(5) < torch.tensor([[2], [5]]) if masked else None
    network, conditions = OfContext(), Conditions(context=context, context_mask=mask)
    towards = network(x, t, context=context, context_mask=mask) - x
    assert_close(guided(network, conditions, 3.0)(x, t), x + 3 * towards)
    assert network.batch == 4
    assert_close(guided(network, conditions)(x, t), x + towards)
    assert network.batch == 2
    assert_close(guided(network, conditions.of(slice(1, 2)), 3.0)(x[1:], t[1:]), (x + 3 * towards)[1:])


def test_labels_and_a_context_are_both_left_out():
    seen = []

    def network(x, t, labels, context=None, context_mask=None):
        seen.append((labels.tolist(), context_mask.tolist()))
        return x

    network.num_classes = 7
    conditions = Conditions(torch.tensor([3]), torch.zeros(1, 2, 4))
    guided(network, conditions, 2.0)(torch.zeros(1, 1, 2, 2), torch.zeros(1, dtype=torch.long))
    assert seen == [([3, 7], [[True, True], [False, False]])]


def test_errors():
    with pytest.raises(ValueError, match=r"guidance=2\.0 needs labels or a context"):
        guided(lambda x, t: x, Conditions(), 2.0)
    with pytest.raises(ValueError, match="a network with a null class: build it with num_classes"):
        guided(lambda x, t, labels: x, Conditions(torch.zeros(1, dtype=torch.long)), 2.0)
