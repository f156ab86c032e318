import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastdiff.data.order import permutation, split_indices


def test_permutation_never_changes():
    """Golden: saved splits and resumed runs depend on it, on every machine and with every release."""
    assert permutation(10, seed=0).tolist() == [0, 2, 9, 1, 8, 5, 4, 3, 6, 7]


@given(st.integers(0, 300), st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
def test_permutation_is_one(count, seed, stream):
    order = permutation(count, seed, stream)
    assert order.dtype == torch.int64
    assert sorted(order.tolist()) == list(range(count))


def test_seed_and_stream_each_change_the_permutation():
    orders = {tuple(permutation(50, seed, stream).tolist()) for seed in range(3) for stream in range(3)}
    assert len(orders) == 9


@given(st.lists(st.integers(0, 3), min_size=1, max_size=200), st.integers(0, 1000))
def test_split_is_disjoint_whole_exact_and_stratified(labels, seed):
    fractions = (0.5, 0.3, 0.2)
    parts = split_indices(fractions, len(labels), torch.tensor(labels), seed)
    assert sorted(torch.cat(parts).tolist()) == list(range(len(labels)))
    ends = [round(len(labels) * end) for end in np.cumsum(fractions)]
    assert [len(part) for part in parts] == np.diff([0, *ends]).tolist()
    for label in set(labels):
        for fraction, part in zip(fractions, parts, strict=True):
            got = sum(labels[i] == label for i in part.tolist())
            assert abs(got - fraction * labels.count(label)) <= 2  # two cuts, each rounded by up to one


@pytest.mark.parametrize("fractions", [(), (0.5, 0.4), (1.5, -0.5), (1.0, 0.0)])
def test_split_refuses_fractions_that_are_no_parts(fractions):
    with pytest.raises(ValueError, match="positive and sum to 1, got"):
        split_indices(fractions, 10)
