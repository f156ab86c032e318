"""Noise: known answers, the same bits natively and in plain torch, statistics, keys, errors."""

from __future__ import annotations

import math
import re

import pytest
import torch
from noisy import CPU_LEVELS, cpu_level
from oracle import needs_kernel

from fastdiff import ops
from fastdiff.ops import Purpose, draw_seed, image_seeds, philox_normal, philox_uniform
from fastdiff.ops import _philox as plain

MAX = 2**32 - 1
REFERENCE = ops.REGISTRY["philox_normal"].reference


def words(*values: int) -> tuple[torch.Tensor, ...]:
    return tuple(torch.tensor([v]) for v in values)


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ((MAX,) * 4, (MAX,) * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_known_answers_of_random123(counter: tuple[int, ...], key: tuple[int, int], expected: str) -> None:
    got = plain.philox4x32(words(*counter), words(*key))
    assert " ".join(f"{int(w):08x}" for w in got) == expected


def test_the_docstring_prints_the_first_eight_of_seed_0() -> None:
    doc = re.findall(r"-?\d\.\d{8}", __import__("sys").modules["fastdiff.ops.philox_normal"].__doc__)
    got = philox_normal((1, 8), torch.tensor([0]))[0]
    assert [f"{v:.8f}" for v in got.tolist()] == doc


@pytest.mark.parametrize("shape", [(3, 1000003), (64, 3, 32, 32), (1, 5)])
@pytest.mark.parametrize(("step", "purpose"), [(0, 0), (2**32 - 1, 2**31 - 1), (17, 3)])
def test_plain_torch_gives_the_bits(shape: tuple[int, ...], step: int, purpose: int) -> None:
    seeds = image_seeds(2**63 + 5, shape[0])
    got = philox_normal(shape, seeds, step, purpose)
    assert torch.equal(got, REFERENCE(shape, seeds, torch.tensor(step), purpose))


@needs_kernel("philox_normal")
@pytest.mark.parametrize("level", CPU_LEVELS)
def test_every_instruction_set_gives_the_bits(level: str) -> None:
    with cpu_level(level):
        test_plain_torch_gives_the_bits((3, 100003), 5, 2)


def test_counters_past_2_32_carry() -> None:
    """An image of more than 2^34 elements: its counters' high word. Plain torch makes the counters in question."""
    low = torch.tensor([MAX - 1, MAX, 2**32, 2**32 + 1])
    w = plain.philox4x32((*plain.split64(low), *words(0, 0)), plain.split64(torch.tensor([7])))
    again = plain.philox4x32((low & MAX, torch.tensor([0, 0, 1, 1]), *words(0, 0)), words(7, 0))
    assert all(torch.equal(a, b) for a, b in zip(w, again, strict=True))


def test_an_image_does_not_depend_on_its_batch() -> None:
    seeds = image_seeds(3, 9)
    whole = philox_normal((9, 2, 7, 5), seeds, 4)
    for part in (slice(0, 1), slice(4, 9), slice(8, 9)):
        assert torch.equal(philox_normal((len(seeds[part]), 2, 7, 5), seeds[part], 4), whole[part])
    assert torch.equal(philox_normal((9, 2, 7, 5), seeds[:1].expand(9), 4)[8], whole[0])  # strided seeds


def test_moments_and_tails() -> None:
    n = philox_normal((4, 4_000_000), image_seeds(0, 4)).double()
    assert abs(n.mean()) < 4 / math.sqrt(n.numel())
    assert abs(n.var() - 1) < 4 * math.sqrt(2 / n.numel())
    assert abs((n**3).mean()) < 4 * math.sqrt(15 / n.numel())
    assert abs((n**4).mean() - 3) < 4 * math.sqrt(96 / n.numel())
    for z in (1.0, 2.0, 3.0, 4.0):
        p = math.erfc(z / math.sqrt(2))
        assert abs((n.abs() > z).double().mean() - p) < 4 * math.sqrt(p / n.numel())
    correlation = (n[:, :-1] * n[:, 1:]).mean()
    assert abs(correlation) < 4 / math.sqrt(n.numel())
    assert abs((n[0] * n[1]).mean()) < 4 / math.sqrt(n.shape[1])
    assert n.abs().max() <= 6.77


def test_box_muller_is_accurate() -> None:
    w = torch.randint(0, 2**32, (2, 200000), generator=torch.Generator().manual_seed(0))
    first, second = plain.box_muller(w[0], w[1])
    u = (w[0].float() * 2.0**-32 + 2.0**-33).double()  # in float32, as the definition says
    radius, angle = torch.sqrt(-2 * torch.log(u)), w[1].double() * (2 * math.pi / 2**32)
    assert (first - radius * torch.cos(angle)).abs().max() < 2e-6
    assert (second - radius * torch.sin(angle)).abs().max() < 2e-6


def test_steps_and_purposes_are_apart() -> None:
    seeds = torch.tensor([1])
    drawn = [philox_normal((1, 100), seeds, s, p) for s in range(3) for p in Purpose]
    assert len({tuple(d.flatten().tolist()) for d in drawn}) == len(drawn)


def test_image_seeds_are_those_of_the_definition() -> None:
    low, high, zero = *plain.split64(torch.tensor([5])), torch.tensor([0])
    w = plain.philox4x32((low, high, zero, zero + int(Purpose.IMAGE_SEED)), plain.split64(torch.tensor([42])))
    assert int(image_seeds(42, 6)[5]) == int(plain.join64(w[0], w[1]))
    assert torch.equal(image_seeds(42, torch.tensor([5, 0])), image_seeds(42, 6)[[5, 0]])
    assert len(set(image_seeds(0, 10000).tolist())) == 10000


def test_uniform() -> None:
    seeds = image_seeds(0, 100000)
    u = philox_uniform(seeds, 0, Purpose.TRAINING_TIMESTEP)
    assert u.dtype is torch.float64
    zero = torch.zeros_like(seeds)
    words = plain.philox4x32((zero, zero, zero, zero + Purpose.TRAINING_TIMESTEP), plain.split64(seeds))[0]
    assert torch.equal(u * 2.0**32, words.double())
    assert u.min() >= 0
    assert u.max() < 1
    assert abs(u.mean() - 0.5) < 4 / math.sqrt(12 * len(u))


def test_draw_seed_follows_torchs_generator() -> None:
    torch.manual_seed(1)
    a = draw_seed()
    torch.manual_seed(1)
    assert draw_seed() == a
    assert draw_seed(generator=torch.Generator().manual_seed(2)) == draw_seed(generator=torch.Generator().manual_seed(2))
    with pytest.raises(ValueError, match="seed or generator, not both"):
        draw_seed(1, torch.Generator())


@pytest.mark.parametrize(
    ("args", "error", "message"),
    [
        (((2, 3), [0, 1]), TypeError, "seeds must be a torch.Tensor, got list"),
        (((2, 3), torch.zeros(2)), TypeError, "seeds must be int64"),
        (((3, 3), torch.tensor([0, 1])), ValueError, r"seeds must have one value per image, shape \(3,\)"),
        (((2, -3), torch.tensor([0, 1])), ValueError, "no negative size"),
        (((), torch.tensor([0])), ValueError, r"shape must be \[N, ...\]"),
        (((1, 3), torch.tensor([0]), -1), ValueError, r"step must be in 0..2\^32-1, got -1"),
        (((1, 3), torch.tensor([0]), 2**32), ValueError, "step must be in"),
        (((1, 3), torch.tensor([0]), torch.tensor([1, 2])), TypeError, "step must be an int64 tensor of one element"),
        (((1, 3), torch.tensor([0]), 0, -1), ValueError, r"purpose must be in 0..2\^31-1"),
    ],
)
def test_wrong_arguments_are_named(args: tuple, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        philox_normal(*args)


def test_seed_out_of_range() -> None:
    with pytest.raises(ValueError, match="seed must fit in 64 bits"):
        image_seeds(2**64, 1)
